"""What the documents say of files, tests, links, environment variables, solvers and regimes is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "csrc/**/README.md", "tests/**/README.md", "bench/**/README.md")
DOCUMENTS = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

SOURCES = {".py", ".pyi", ".h", ".cpp", ".cuh", ".cu", ".cmake", ".md", ".toml", ".map"}
NOT_PACKED = ("bench/results",)  # by a source distribution
SKIPPED = {"build", "dist", "results", "__pycache__"}


def read(path):
    return (ROOT / path).read_text()


def is_there(path, *starts):
    """Whether a path leads somewhere from one of these folders, or would, had everything been packed."""
    for start in starts:
        target = (start / path).resolve()
        name = str(target.relative_to(ROOT)) if target.is_relative_to(ROOT) else ""
        if target.exists() or any(name.startswith(lost) and not (ROOT / lost).exists() for lost in NOT_PACKED):
            return True
    return False


# ---- files and tests ----


def code_of(text):
    """What stands in code spans and in blocks of code that are not Python, which other tests run."""
    blocks = re.findall(r"^    .*$", text, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", prose), *blocks]


def names_of_files(text):
    """Whatever looks like a file of a project or a path into this one."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - SKIPPED
    for code in code_of(text):
        for name in re.findall(r"(?<![\w<>*/.-])\.?\w[\w.-]*(?:/[\w.-]+)*/?(?![\w<>*])", code):
            name = name.rstrip(".")
            if Path(name).suffix in SOURCES or ("/" in name and name.partition("/")[0] in folders):
                yield name


@documents
def test_files_that_are_named_exist(document):
    names = set(names_of_files(document.read_text()))
    missing = {name for name in names if not is_there(name, ROOT, document.parent)}
    assert not missing


def test_names_of_files_are_found():
    text = "`a/b.h`, `bench/clocks`, `x.y`, `torch.func`, `*.cu` and `tests/test_x.py::test_y`\n\n    docs/z.md  what\n"
    assert list(names_of_files(text)) == ["a/b.h", "bench/clocks", "tests/test_x.py", "docs/z.md"]


@documents
def test_tests_that_are_named_exist(document):
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", document.read_text()):
        assert re.search(rf"^def {name}\(", read(path), re.MULTILINE), f"{path}::{name}"


# ---- links ----


def anchors(text):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert is_there(target, ROOT), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), {ROOT / "README.md"}
    while ahead:
        document = ahead.pop()
        reached.add(document)
        links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
        ahead |= ({(document.parent / link).resolve() for link in links} & set(DOCUMENTS)) - reached
    assert reached == set(DOCUMENTS)


# ---- environment variables ----


def sources():
    """The text of everything that may read the environment."""
    for folder in ("csrc", "hypersimplex_ext", "tests", "bench", "cmake"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SOURCES - {".md"} and not SKIPPED & set(path.relative_to(ROOT).parts):
                yield path.read_text()
    for path in (ROOT / "setup.py", ROOT / "Makefile", ROOT / "CMakeLists.txt", ROOT / ".ci/run"):
        yield path.read_text()


def test_every_environment_variable_is_documented_and_no_other():
    by_code = r"(?:getenv\(|environ\.get\(|environ\[)\s*[\"'](HYPERSIMPLEX_\w+)[\"']"
    read_by_code = {name for text in sources() for name in re.findall(by_code, text)}
    table = re.findall(r"^\| `(HYPERSIMPLEX_\w+)` \| `([\w/.]+)`", read("CONTRIBUTING.md"), re.MULTILINE)
    assert {name for name, _ in table} == read_by_code
    for name, path in table:
        assert re.search(by_code.replace(r"HYPERSIMPLEX_\w+", name), read(path)), f"{path} does not read {name}"


@documents
def test_variables_and_macros_that_are_named_exist(document):
    named = set(re.findall(r"\bHYPERSIMPLEX_[A-Z_]+\b", document.read_text()))
    assert named <= set(re.findall(r"\bHYPERSIMPLEX_[A-Z_]+\b", "\n".join(sources())))


# ---- tables that stand in the code and in a document ----


def table_in_comment(path, first):
    """Rows of the table in a comment whose first column has this heading; a row with an empty first cell goes on."""
    lines = [line[2:].rstrip() for line in read(path).splitlines() if line.startswith("//")]
    heads = [line.split()[:1] for line in lines]
    head = next(i for i, line in enumerate(lines) if heads[i] == [first] and re.fullmatch("[ -]+", lines[i + 1]))
    starts = [match.start() for match in re.finditer("-+", lines[head + 1])]
    rows = []
    for line in lines[head + 2 :]:
        if not line:
            return rows
        cells = dict.fromkeys(starts, "")
        for match in re.finditer(r"\S+(?: \S+)*", line):
            assert match.start() in cells, f"{path}: out of its column: {match[0]}"
            cells[match.start()] = match[0]
        if cells[starts[0]]:
            rows.append(list(cells.values()))
        else:
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells.values(), strict=True)]
    raise AssertionError(f"{path}: a table without an end")


def table_in_document(path, first):
    """Rows of the table whose first column has this heading, without the marks of code."""
    lines = read(path).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_solvers():
    path = "csrc/cpu/projection/solvers/"
    documented = table_in_document("docs/solvers.md", "solver")
    assert documented == [
        [*cells, path + file] for *cells, file in table_in_comment("csrc/cpu/projection/plan.h", "solver")
    ]
    names = re.search(r"kNames\[kSolvers\] = \{(.*?)\}", read(path + "solver.cpp"), re.DOTALL)[1]
    assert [cells[0] for cells in documented] == re.findall(r'"(\w+)"', names)


def test_regimes():
    documented = table_in_document("docs/cuda.md", "regime")
    assert documented == table_in_comment("csrc/cuda/tuning.h", "regime")
    names = re.search(r"names\[\] = \{(.*?)\}", read("csrc/cuda/tuning.h"))[1]
    assert [cells[0] for cells in documented] == re.findall(r'"(\w+)"', names)
    keys = {cells[0] for cells in table_in_document("docs/cuda.md", "key")}
    assert keys == set(re.findall(r'make_pair\("(\w+)="', read("csrc/cuda/tuning.h")))


def test_launchers():
    on_cpu = read("csrc/hypersimplex.h").partition("namespace cpu {")[2].partition("}  // namespace cpu")[0]
    launchers = re.findall(r"^void (\w+)\(", on_cpu, re.MULTILINE)
    documented = table_in_document("csrc/README.md", "launcher")
    assert [cells[0] for cells in documented] == launchers
    for name, _, *files in documented:
        for file in files:
            assert re.search(rf"\b{name}\(", read(f"csrc/{file}")), f"{file} does not define {name}"


def test_steps_of_continuous_integration():
    """Every script that .ci/run starts is in the table of what a change has to pass."""
    steps = "\n".join(" ".join(cells) for cells in table_in_document("CONTRIBUTING.md", "step"))
    for script in {*re.findall(r"\.ci/\w+\.py", read(".ci/run")), *re.findall(r"make \w+", read(".ci/run"))}:
        assert script in steps

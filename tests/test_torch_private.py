"""Without any one of the private names of torch that the package knows: the same results, and one warning."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hypersimplex_ext import _torch_private

ROOT = Path(__file__).parents[1]

# Torch goes on with the name; only the room does not find it.
WITHOUT = """
import importlib, importlib.util, sys, warnings
import pytest, torch
home, _, name = sys.argv[1].rpartition(".")
module, _, kind = home.partition(":")
place = importlib.import_module(module)
place = getattr(place, kind) if kind else place
value = vars(place)[name]
delattr(place, name)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    spec = importlib.util.spec_from_file_location("hypersimplex_ext._torch_private", ROOM)
    sys.modules[spec.name] = room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
setattr(place, name, value)
assert [name in str(w.message) for w in seen if "hypersimplex_ext" in str(w.message)] == [True], seen
import hypersimplex_ext._autograd
assert hypersimplex_ext._autograd.transforms_active is room.transforms_active
sys.exit(pytest.main(sys.argv[2:]))
"""
QUICK = (
    "tests/test_compile.py::test_lazily_negated_logits",
    "tests/test_memory_safety.py::test_a_tensor_without_its_memory_is_an_error",
    "tests/test_ranking.py::test_derivatives[rank kl]",
)
CORE = (
    *QUICK,
    "tests/test_transforms.py",
    "tests/test_compile.py::test_compiled_training[k and tau]",
    "tests/test_compile.py::test_compiled_training[loss]",
    "tests/test_compile.py::test_compiled_derivative_transforms_are_refused[grad-projection]",
)
# One key that is missing is as good as all: they make one list.
NAMES = [name for name in _torch_private.looked_up if ":DispatchKey." not in name or name.endswith(".ADInplaceOrView")]


def telling(name):
    """The tests that reach what is done without a name. All names that tell plain memory have one way beside them."""
    if name.startswith("torch.nn"):
        return ("tests/test_nn.py",)
    return QUICK if "DispatchKey" in name or name.endswith("_include_set") else CORE


def run_without(name):
    options = ["-q", "-p", "no:cacheprovider", "-k", "not simt and not cuda", "--no-cov"]
    code = f"ROOM = {_torch_private.__file__!r}" + WITHOUT
    command = [sys.executable, "-c", code, name, *options, *telling(name)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(request):
    """The runs of all chosen names, as many at a time as there are processors."""
    items = [item for item in request.session.items if item.name.startswith("test_without_a_private_name[")]
    chosen = [item.callspec.params["name"] for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run_without, name) for name in chosen}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_private_name(runs, name):
    done = runs[name].result()
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_names_are_there():
    assert all(_torch_private.looked_up.values())


def test_key_sets_that_are_plain():
    """Plain memory is; what a transform wraps, what is negated or conjugated lazily, sparse or without data is not."""
    x = torch.randn(3)
    with torch.inference_mode():
        inferred = torch.randn(3)
    for t in (x, x[1:], torch.nn.Parameter(x), x.clone().requires_grad_() * 2, x.long(), x.bool(), inferred):
        assert _torch_private.is_plain(t)
    others = [x.to_sparse(), x.to("meta"), (x + 1j * x).conj(), (x + 1j * x).conj().imag]
    torch.func.grad(lambda x: (others.append(x), x.sum())[1])(x)
    torch.vmap(lambda x: (others.append(x), x)[1])(x)
    torch.func.functionalize(lambda x: (others.append(x), x)[1])(x)
    assert [_torch_private.is_plain(t) for t in others] == [False] * 7


def test_nothing_is_direct_in_a_mode_or_transform():
    x, seen = torch.randn(3), []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            return function(*arguments, **(keywords or {}))

    assert _torch_private.direct(x)
    with Mode():
        seen.append(_torch_private.direct(x))
    torch.vmap(lambda y: (seen.append(_torch_private.direct(x)), y)[1])(x)
    assert seen == [False, False]

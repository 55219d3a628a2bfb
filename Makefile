# make demo    train a small network with this loss and with its rivals; prints where the table and the plots are
# make test    run the tests; with another torch than that of requirements-dev.txt: make test TORCH=2.6.0 VENV=.venv-2.6
# make lint    check style and types
# make bench   measure against plain PyTorch and its peers, in two minutes; BENCH=--full measures everything
# make clean   remove what was built
# The first use creates a virtual environment in .venv and builds the package into it.
#
# make gpu-check OUT=folder   check and measure everything on this machine's GPU, with PYTHON (python3) as it is: no
#                             environment, no network; MINUTES=9 ends then, after what matters most; STEPS="build tests"
#                             does some of it: python -m bench.gpu_check -h
PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
NATIVE := $(shell find bench csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: demo test lint bench gpu-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/python -m bench.training --data digits --out build/demo

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest --cov --cov-report=term

lint: $(VENV)/.requirements
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict hypersimplex_ext
	$(VENV)/bin/python .ci/rooms.py
	$(VENV)/bin/python .ci/rooms.py --lengths
	$(VENV)/bin/clang-format --dry-run -Werror $(NATIVE)

bench: $(VENV)/.installed
	-$(PIP) install --quiet -r bench/requirements-peers.txt
	$(VENV)/bin/python -m bench $(BENCH)

gpu-check:
	$(if $(OUT),,$(error make gpu-check OUT=folder: no folder is given))
	$(PYTHON) -m bench.gpu_check $(OUT) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(STEPS),--steps $(STEPS))

clean:
	rm -rf $(VENV) build dist *.egg-info hypersimplex_ext/_C.*.so .coverage .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.requirements: requirements-dev.txt bench/requirements-data.txt
	$(PYTHON) -m venv $(VENV)
	grep -v '^torch==' $< > $(VENV)/others.txt
	$(PIP) install $(if $(TORCH),torch==$(TORCH) -r $(VENV)/others.txt,-r $<)
	$(PIP) install --no-deps -r bench/requirements-data.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/*) $(filter csrc/%,$(NATIVE))
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

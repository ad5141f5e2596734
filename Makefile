# Every routine command; `make help` lists them.

# Any Python >= 3.10.
PYTHON ?= python3
# The environment to install into; created if missing.
VENV ?= .venv
# What pip installs if that environment has no torch. A fixed version, because a looser requirement may download a GPU
# build of several gigabytes; options may follow: make test TORCH="torch --index-url URL".
TORCH ?= torch==2.13.0
# Passed on: make test ARGS="-k masks -x", make train ARGS="--data.path my.txt"; ARGS="-n 0 --pdb" needs one process.
ARGS ?=
# Test files that run at a time. Whole files, because their tests share fixtures; tests/conftest.py orders them.
JOBS ?= 2

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# A change in any of these reinstalls the package; Python files are used in place.
BUILT_FROM := pyproject.toml setup.py $(shell find build_backend csrc -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')
CXX_FILES := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-isa test-gpu test-kernels test-compat wheel bench bench-quick features notebooks transcripts docs lint format audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.installed-train ## set up and train the default language model; leaves runs/char_lm/version_N
	$(BIN)/lstm-fused fit -c char_lm $(ARGS)

test: $(VENV)/.installed-dev ## the quick tests
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-dev ## every test: also the slow ones, the sanitizers, and the oldest and newest torch
	$(PYTEST) -m "slow or not slow" $(ARGS)
	$(MAKE) test-kernels test-compat

# With avx2, torch's oneDNN is limited to AVX2 too, so that its modules behave as on a CPU without AVX-512.
test-isa: $(VENV)/.installed-dev ## the quick tests once for each instruction set that this CPU has
	@set -e; for isa in $$(PYTHONPATH=tests $(BIN)/python -c "from testing import CPU_ISAS; print(*CPU_ISAS)"); do \
	    export LSTM_FUSED_ISA=$$isa; unset ONEDNN_MAX_CPU_ISA; \
	    if [ $$isa = avx2 ]; then export ONEDNN_MAX_CPU_ISA=AVX2; fi; \
	    echo "LSTM_FUSED_ISA=$$isa ONEDNN_MAX_CPU_ISA=$$ONEDNN_MAX_CPU_ISA"; $(PYTEST) $(ARGS); \
	done

# The kernels without torch: under the sanitizers, and for arm64 under an emulator if installed.
test-kernels:
	$(PYTHON) tests/kernels/run.py

# The wheel on the oldest and the newest supported torch; downloads about 1.5 GB the first time.
test-compat: wheel
	$(BIN)/python tests/compat/run.py dist/*.whl

# Without lstm_fused._C, which is for one Python, and without CUDA kernels. auditwheel refuses a library or a symbol that
# manylinux_2_28 lacks; torch's own wheels need the same glibc. A newer compiler may need newer symbols: see
# csrc/old_glibc.cpp.
wheel: $(VENV)/.installed-wheel ## in dist/: one wheel for every torch >= 2.10 and every Python >= 3.10, manylinux x86-64
	rm -rf build/wheel dist/*.whl
	LSTM_FUSED_CUDA=0 $(BIN)/python -m build --wheel --no-isolation -C=--build-option=--py-limited-api=cp310 --outdir build/wheel
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl

features: $(VENV)/.installed-dev ## rewrite docs/features.md: every feature, compiled, exported, differentiated twice, ...
	$(BIN)/python tests/features.py

notebooks: $(VENV)/.installed-dev ## rerun docs/notebooks and store their output
	$(BIN)/python tests/notebooks.py

transcripts: $(VENV)/.installed-dev ## rerun the commands on pages of docs/ and store their output: a few minutes of training
	$(BIN)/python tests/transcripts.py $(ARGS)

docs: $(VENV)/.installed-docs ## the documentation site, in build/site; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs -d build/site_cache . build/site
	cp build/site/README.html build/site/index.html

# No environment and no download: PYTHON must have a CUDA torch. ARGS="--stage first-light": the first two minutes of
# it, see tests/gpu/run.py; ARGS=--dry-run: everything that needs no GPU.
test-gpu: ## on a machine with a GPU: build, test, time, and report in benchmarks/results/gpu/, in about 10 minutes
	$(PYTHON) tests/gpu/run.py $(ARGS)

bench: $(VENV)/.installed-dev ## speed and memory against nn.LSTM: a page, a CSV and a picture in benchmarks/results/
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.installed-dev ## the same with fewer shapes, in under 3 minutes
	$(BIN)/python -m benchmarks --scale quick $(ARGS)

# pyright resolves imports in the first python on PATH.
lint: $(VENV)/.installed-dev ## ruff, clang-format, mypy and pyright, without changes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	PATH=$(abspath $(BIN)):$$PATH PYTHONPATH=src $(BIN)/pyright --verifytypes lstm_fused --ignoreexternal

format: $(VENV)/.installed-dev ## ruff and clang-format, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

audit: $(VENV)/.installed-audit ## known vulnerabilities in the packages of the environment; fails if none could be checked
	$(BIN)/python tests/audit.py

clean: ## remove build output; keeps the environment and runs/
	rm -rf build dist *.egg-info src/*.egg-info src/lstm_fused/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed-*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("lstm_fused needs Python >= 3.10, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# The package in editable mode with one extra. torch first: the package is compiled against it.
$(VENV)/.installed-%: $(BUILT_FROM) | $(BIN)/python
	@echo "Setting up $(VENV) for '$*': a few minutes the first time"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[$*]"
	@touch $@

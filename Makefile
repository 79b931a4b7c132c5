# `make train` and `make test` set everything up by themselves; the second call reuses it.
#   VMAMBA_BUILD=auto|cpu|cuda|off   which native libraries to build (auto: what can be)
#   PY=python3                       use this Python and its packages instead of .venv

SHELL := bash
VENV ?= .venv
PYTHON ?= python3
VMAMBA_BUILD ?= auto
export VMAMBA_BUILD

SOURCES := setup.py pyproject.toml $(shell find kernels/csrc -type f 2>/dev/null)

ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/.built-$(VMAMBA_BUILD)
else
READY := native-in-place
endif

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-openmmlab kernel-gates lint docs gallery soak bench gpu-check data doctor clean native-in-place

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv, install, build the native library

$(VENV)/.installed: requirements.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.built-$(VMAMBA_BUILD): $(VENV)/.installed $(SOURCES)
	@rm -f $(VENV)/.built-*
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(VENV)/bin/python -m vmamba.doctor --brief
	@touch $@

native-in-place:
	@$(PY) setup.py build_ext --inplace

train: $(READY) ## train a small VMamba on the bundled digits, evaluate it, keep checkpoint, curves and log
	$(PY) -m classification --cfg configs/classification/vmamba_digits.yaml --output output $(ARGS)

lint: $(READY) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check --quiet .
	$(PY) -m mypy

test: lint ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: $(READY) ## what does not fit the budget of `make test`
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(ARGS)

test-openmmlab: $(READY) ## every configuration of detection and segmentation, end to end on a small tree
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/openmmlab $(ARGS)

# One rule: everything in tests/kernels that needs no GPU, what is slow included. `make test` runs the part not slow.
kernel-gates: $(READY) ## every check of the kernels that needs no GPU; what a missing tool skips is named at the end
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/kernels -n auto --dist worksteal -m "not gpu" $(ARGS)
	PYTHONPATH=tests $(PY) -m kernels.print_gates

soak: $(READY) ## end a small run of two processes 50 times, in every way, and compare its end with an unbroken one
	OMP_NUM_THREADS=1 PYTHONPATH=.:kernels $(PY) -m tests.classification.soak $(ARGS)

bench: $(READY) ## operators and networks against their peers, side by side, in about 35 minutes
	$(PY) kernels/benchmarks/ss2d.py --device cpu --budget 420
	$(PY) kernels/benchmarks/selective_scan.py --device cpu --networks vmamba_tiny vanilla_vmamba_tiny --budget 1200
	$(PY) kernels/benchmarks/layers.py --device cpu
	$(PY) kernels/benchmarks/vim_block.py --device cpu
	$(PY) kernels/benchmarks/growth.py --device cpu --budget 60 --contenders unfused ours,time-first
	$(PY) kernels/benchmarks/backbone.py --device cpu
	$(PY) kernels/benchmarks/memory.py --device cpu

gpu-check: ## GPU tests, sanitizers, benchmarks and a training run with the system's python3, under 10 minutes
	$(PYTHON) tests/gpu_check.py $(ARGS)

data: $(READY) ## fetch Fashion-MNIST into data/
	$(PY) -m classification.fetch fashion_mnist

gallery: $(READY) ## draw the pictures of docs/analysis.md anew, on a quiet machine, after `make train`
	$(PY) -m analyze.gallery $(ARGS)

docs: $(READY) ## the documentation, to read in a browser from build/site/index.html
	$(PY) -m sphinx -W --keep-going -q -E -d build/doctrees docs build/site

doctor: $(READY) ## versions, and which backend each operator uses and why
	@$(PY) -m vmamba.doctor

clean: ## remove what was built, keep .venv and output
	rm -rf build *.egg-info kernels/vmamba_kernels/*.so kernels/vmamba_kernels/*.hash $(VENV)/.built-*

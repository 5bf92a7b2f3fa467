# Each target does everything itself, from a machine with nothing but Python 3.10+ (pip, venv) and make.
# With uv on the machine, `make UV=1 ...` sets up with it. `make test ARGS="-k lion"` passes options on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PACKAGES := $(patsubst %/pyproject.toml,%,core/pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml)))

# Not chosen by uv's mere presence: uv ignores pip's configuration, which may say where to get torch.
ifdef UV
MAKE_VENV := uv venv --seed --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --no-sources --python $(BIN)/python --constraint constraints.txt
else
MAKE_VENV := $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture lint types docs bench compare bench-quick clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## create .venv with the core, all plugins and the tools

# The build tools come first: packages that have no wheel, and ours, are then built with pinned versions.
$(READY): constraints.txt requirements-dev.txt $(PACKAGES:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ed-train needs Python 3.10 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(MAKE_VENV)
	$(INSTALL) --requirement requirements-dev.txt
	$(INSTALL) --no-build-isolation $(PACKAGES:%=--editable ./%)
	$(INSTALL) --no-deps open-clip-torch  # only for its tokenizer file: its dependencies include torchvision
	@touch $@

demo: $(READY) ## teach a small model what a robot is, and draw before, between and after (.work/demo/demo.png)
	PYTHONPATH=examples $(BIN)/python -m demo.demo $(ARGS)

test: $(READY) ## all tests, on all cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

torture: $(READY) ## kill training runs at random and at every call of a save, and compare their ends
	PYTHONPATH=tests:examples OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m reliability.torture $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy $(ARGS)

docs: $(READY) ## write docs/configuration.md anew from the types
	$(BIN)/python docs/generate.py

bench: $(READY) ## time and memory of training, side by side with a hand-written loop (docs/benchmarks.md)
	$(BIN)/python benchmarks/run.py $(ARGS)
	$(BIN)/python benchmarks/checkpoints.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/caches.py
	$(BIN)/python benchmarks/memory.py

compare: $(READY) ## every optimizer on the demo's task, and a report (.work/compare/report.html)
	PYTHONPATH=examples HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/compare.py $(ARGS)

bench-quick: $(READY) ## one row of it, in under 3 minutes
	$(BIN)/python benchmarks/run.py --quick $(ARGS)

clean: ## remove everything that make created
	rm -rf $(VENV) .work .mypy_cache .pytest_cache .ruff_cache .hypothesis

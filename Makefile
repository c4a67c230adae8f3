# `make` alone lists the targets. Everything happens in .venv, made when it is needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help run tiny test quick fuzz soak bench lint format clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'kasou needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	    { echo 'no virtual environment could be made: apt install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

run: $(READY)  ## Boot Debian to a shell on this terminal (ARGS="tiny" for others).
	@$(BIN)/kasou run $(ARGS)

tiny: $(READY)  ## Boot the teaching kernel: no download.
	@$(BIN)/kasou run tiny

test: $(READY)  ## Run all tests; those that need an absent tool say so and are skipped.
	$(BIN)/python -m pytest -ra $(ARGS)

quick: $(READY)  ## Run the tests that take seconds.
	$(BIN)/python -m pytest -m 'not slow and not guest' $(ARGS)

fuzz: $(READY)  ## Torment the virtio devices (ARGS="net --seconds 60").
	$(BIN)/python -m fuzz $(ARGS)

soak: $(READY)  ## Kill a process at work on its disks 1,000 times, cut the power as often.
	KASOU_SOAK_KILLS=1000 KASOU_SOAK_CUTS=20 $(BIN)/python -m pytest tests/storage/test_kill.py \
	    tests/storage/test_power_cut.py $(ARGS)

bench: $(READY)  ## Measure, against QEMU on this machine where it is installed.
	$(BIN)/python -m bench $(ARGS)

lint: $(READY)  ## ruff, mypy --strict, import-linter.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Rewrite the source in the house's layout.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what can be made again; the image cache stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

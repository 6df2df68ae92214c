# Everything runs in .venv, made from constraints.txt; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SAY_VERSION := import sys; print(sys.version_info[:2])

.PHONY: help demo test test-long test-faults test-gpu test-sabotage mutation check check-types check-rest licences lock audit format docs clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 15

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python 3.11 to 3.14 is needed (make PYTHON=python3.13 ...), this is " + sys.version)'
	[ "$$($(PYTHON) -c '$(SAY_VERSION)')" = "$$($(BIN)/python -c '$(SAY_VERSION)' 2>&1)" ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: $(STAMP) ## render sample videos, index them, search them: the main job on the embedded database
	$(BIN)/siglip-pipeline demo $(ARGS)

# Files of tests side by side, each in a process with a database server of its own; slow files first.
test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(STAMP) ## run the tests that wait for Dagster's daemon for minutes
	$(BIN)/python -m pytest -m long $(ARGS)

test-faults: $(STAMP) ## run the tests that end processes and services at work; takes long
	$(BIN)/python -m pytest -m faults $(ARGS)

# Fails where no card answers: tests that skip there prove nothing.
test-gpu: $(STAMP) ## run the tests of the model, the engine and the whole way on a CUDA device
	SIGLIP_EXPECT_GPU=1 $(BIN)/python -m pytest -m "gpu or not (long or faults)" \
		siglip_pipeline_tests/siglip siglip_pipeline_tests/runs/test_pipeline.py $(ARGS)

test-sabotage: $(STAMP) ## break one promise after the other in a copy; name those that no test notices; takes long
	$(BIN)/python -m siglip_pipeline_tests.sabotage $(ARGS)

# With an environment of its own: the gate needs none of its packages.
mutation: $(STAMP) ## change modules at random places, and count the changes that tests notice; takes long
	$(PYTHON) -m venv $(VENV)/mutation
	$(VENV)/mutation/bin/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	$(VENV)/mutation/bin/python scripts/mutation.py $(ARGS)

# The types take as long as all the rest, on one core: side by side.
check: $(STAMP) ## lint, formatting, types, dead code, licences, lock, documentation, and whether Dagster loads the definitions
	@$(MAKE) --no-print-directory --jobs 2 --keep-going check-types check-rest

check-types:
	$(BIN)/mypy

check-rest:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/python scripts/check_licences.py --quiet
	$(BIN)/python scripts/write_lock.py --check
	$(BIN)/python scripts/check_promises.py
	$(BIN)/python scripts/build_docs.py
	DAGSTER_HOME=$$(mktemp -d) $(BIN)/dg check defs

licences: $(STAMP) ## list the licence of every package; fails on one that is not permitted
	$(BIN)/python scripts/check_licences.py

lock: $(STAMP) ## write requirements.lock anew: the hash of every package in constraints.txt
	$(BIN)/python scripts/write_lock.py

# A package that the database of vulnerabilities cannot be asked about fails too (--strict).
audit: requirements.lock ## ask for known vulnerabilities of what is locked; needs the network
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

format: $(STAMP) ## apply the formatter and the lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## write docs/settings.md, and the documentation as a site in build/site
	$(BIN)/python scripts/write_settings_docs.py
	$(BIN)/python scripts/build_docs.py

clean: ## remove the virtual environment (indexed videos in .siglip stay)
	rm -rf $(VENV) build .cache .mypy_cache .ruff_cache .pytest_cache

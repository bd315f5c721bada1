# make env && make demo. Needs python3 (3.11 or newer) with venv, git and make; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The engine reports its use to its makers unless told otherwise.
export ORT_DISABLE_TELEMETRY := 1
INSTALL := $(PIP) install --quiet --require-hashes

.PHONY: env demo test test-full fuzz lint format bench docs lock clean help

help:
	@echo "make env        .venv with pinned, hash-checked packages (about a minute)"
	@echo "make demo       seal a model, run a video through two simulated enclaves"
	@echo "make test       the default tests"
	@echo "make test-full  the exhaustive ones as well"
	@echo "make fuzz       every parser for SECONDS (10) each, or those in TARGETS"
	@echo "make lint       ruff, mypy (--strict for the package), import contracts"
	@echo "make format     let ruff reformat"
	@echo "make bench      measure the pipeline and the channel on this machine"
	@echo "make docs       run the demo and redraw the pictures in docs/img"
	@echo "make lock       pin requirements*.txt anew"

env: $(VENV)/dev.stamp

# Each stamp is as new as what was installed, so that a second `make env` does nothing.
$(VENV)/created.stamp:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/runtime.stamp: requirements.txt pyproject.toml $(VENV)/created.stamp
	@echo "installing what vaultline runs with"
	@$(INSTALL) -r requirements.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/runtime.stamp
	@echo "installing what its tests and checks need"
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

demo: $(VENV)/runtime.stamp
	$(BIN)/vaultline demo

test: env
	@echo "the default tests; the exhaustive ones: make test-full"
	$(BIN)/python -m pytest

test-full: env
	@echo "the exhaustive tests (those marked full)"
	$(BIN)/python -m pytest -m full

SECONDS ?= 10
TARGETS ?=
fuzz: env
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(TARGETS)

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports --no-cache

format: env
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/runtime.stamp
	$(BIN)/vaultline bench pipeline
	$(BIN)/vaultline bench channel

# Results of the run are thrown away; only its pictures stay.
docs: $(VENV)/runtime.stamp
	@mkdir -p docs/img out
	@trap 'rm -rf out/docs; rmdir out 2>/dev/null || true' EXIT; \
	  $(BIN)/vaultline demo --out out/docs \
	  && cp out/docs/plan.png out/docs/timeline.png docs/img/

# The pins keep their versions unless UPGRADE=--upgrade is given. One line per package, hashes of
# all processors, no index and no paths: where packages come from is each machine's own affair.
LOCK_VENV := build/lock-venv
UPGRADE ?=
COMPILE = $(LOCK_VENV)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(UPGRADE)
ONE_LINE = sed -i -e ':a' -e '/\\$$/N' -e 's/ *\\\n */ /' -e 'ta' -e '/^\#/d' -e '/^$$/d' -e 's/ ; sys_platform == "linux"//'

lock:
	test -d $(LOCK_VENV) || $(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/pip install --quiet pip-tools==7.6.2
	$(COMPILE) --build-deps-for editable --output-file requirements.txt pyproject.toml
	$(COMPILE) --constraint requirements.txt --output-file requirements-dev.txt requirements-dev.in
	$(ONE_LINE) requirements.txt requirements-dev.txt

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

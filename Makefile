# Two commands matter: `make study` and `make test`. Both set up .venv first, if it is not there yet.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
CONFIG ?= config/config.yaml
# The package's own command must be found by the shell commands of the rules.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: study test test-slow lint report ui setup

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

study: setup  ## run a study: the embedded one, or CONFIG=config/paper.yaml
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)

test: setup  ## run the tests that take seconds
	$(BIN)/pytest -m "not slow"

test-slow: setup  ## run the tests that take minutes
	$(BIN)/pytest -m slow

lint: setup  ## run all linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

report: setup  ## build report.html, self-contained, from a finished study
	$(BIN)/snakemake --configfile $(CONFIG) --report report.html

ui: setup  ## browse all runs of the default store in MLflow, on this machine only
	$(BIN)/mlflow ui --backend-store-uri sqlite:///results/mlflow.db --host 127.0.0.1 --port 5000

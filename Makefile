# The only place where set-up lives. `make demo` and `make test` work on a fresh machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements/constraints.txt
# Processes that run tests, each with one thread; the tests of a file stay together in one of them.
WORKERS ?= 2
LISTS := $(wildcard requirements/*.txt) setup.py

.PHONY: help install install-demo install-test demo test lint bench clean

help:
	@echo "make demo   install, train on real footage and sample videos (outputs/demo)"
	@echo "make test   install what tests need and run them all"
	@echo "make lint   ruff lint and format check, mypy"
	@echo "make bench  measure speed and memory on this machine: WHAT=models, engine, tokens, buckets or faults"

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
	$(PIP) -r requirements/test.txt
	@touch $@

install: $(VENV)/.runtime
install-demo: $(VENV)/.demo
install-test: $(VENV)/.test

demo: install-demo
	$(BIN)/python -m tools.demo.run

test: install-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

WHAT ?= models
bench: install-demo
	$(BIN)/opensora bench $(WHAT)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) outputs build *.egg-info

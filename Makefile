# make demo | make test: each creates .venv where it is missing and builds pixleap into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell git ls-files csrc cmake python setup.py pyproject.toml CMakeLists.txt 2>/dev/null)

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/pixleap demo --out demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -ra -n 2

bench: $(VENV)/.installed
	$(BIN)/pixleap bench

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'bench/*.cpp' 'tests/*.cpp')
	$(BIN)/mypy

$(VENV)/.requirements: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.linters: requirements-lint.txt $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-lint.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	touch $@

clean:
	rm -rf build dist demo $(VENV)/.installed

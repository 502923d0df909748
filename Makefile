# `make run` and `make test` set up .venv, and update it when its inputs change.
# Flags: make run FLAGS="--seed 1 --generations 20"
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: run test coverage lint docs check clean

run: .venv/installed
	$(BIN)/python -m sos_deap.run best $(FLAGS)

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

# Slower, as every line is traced.
coverage: .venv/installed
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --cov --cov-report=term:skip-covered

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/sphinx-build -W --keep-going --quiet -E -a -b html docs docs/_build/html
	@echo docs/_build/html/index.html

check: test lint docs

# Modules are compiled when they are imported, which most of them never are.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv docs/_build

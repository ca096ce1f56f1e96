# Only Python 3.11+ and make are needed; everything goes into .venv
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --editable

.PHONY: demo test fast coverage lint bench soak autoscale clean

demo: .venv/installed ## a synthetic dataset -> index -> extract -> select -> report, in demo/
	$(BIN)/raydistal demo --out demo

test: .venv/installed-dev ## every test
	$(BIN)/pytest -n 2

fast: .venv/installed-dev ## the tests that start no Ray cluster and no browser, and are quick
	$(BIN)/pytest -n 2 -m "not ray and not browser and not slow"

coverage: .venv/installed-dev ## the share of raydistal/ that tests without Ray and browser run; child processes do not count
	$(BIN)/pytest -n 2 -m "not ray and not browser" --cov=raydistal --cov-branch --cov-report=term

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: .venv/installed-dev ## minutes of chaos: drivers, workers, nodes and the head are killed while jobs run
	$(BIN)/python -m tests.faults.soak --minutes 5

autoscale: .venv/installed-dev ## clusters of made-up nodes that grow for a job and shrink after it
	$(BIN)/pytest tests/faults/autoscaler.py

bench: .venv/installed-bench ## the ratios of docs/benchmarks.md
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv demo

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "raydistal needs Python 3.11 or later: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	$(BIN)/python -c 'import torchvision'
	touch $@

.venv/installed-dev .venv/installed-bench: .venv/installed-%: .venv/installed
	$(INSTALL) '.[$*]'
	touch $@

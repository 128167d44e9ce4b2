PYTHON ?= python

.PHONY: lint test demo bench

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -n 2

demo:
	$(PYTHON) -m advunlearn demo --out runs/demo

bench:
	$(PYTHON) -m advunlearn bench

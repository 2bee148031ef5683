# make demo    all five scripts on the embedded sample, a table at the end
# make test    the test suite
# Both set up .venv on first use.

PYTHON ?= python3
PY = .venv/bin/python
SAMPLE = data/sample

.PHONY: demo test lint clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	$(PY) -m pip install -q -r requirements-test.txt
	touch $@

test: .venv/installed-test
	$(PY) -m ruff check .
	$(PY) -m pytest -q

clean:
	rm -rf demo .pytest_cache .ruff_cache

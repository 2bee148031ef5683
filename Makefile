# make demo           all five scripts on the embedded sample, a table at the end: under two minutes
# make demo-tasks     the same for several labels per text, for scores and for pairs: three tables
# make test           the test suite
# make test-optional  the tests that need optional packages (transformers, onnx, …), which it installs
# make test-lowest    the test suite with the oldest packages that requirements.txt allows, in .venv-lowest
# make torture        the kill tests with 50 kills of each script, and longer fuzzing
# make bench          the kit beside its peers, short form; writes docs/efficiency.md
# All set up .venv, or .venv-lowest, on first use.

PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo demo-tasks test test-optional test-lowest torture bench clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-%: requirements-%.txt .venv/installed
	$(PY) -m pip install -q -r $<
	touch $@

demo: .venv/installed
	PYTHON=$(PY) sh recipes/demo.sh

demo-tasks: .venv/installed
	PYTHON=$(PY) sh recipes/demo-tasks.sh

test: .venv/installed-test
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto -m "not optional"

test-optional: .venv/installed-test .venv/installed-test-optional
	$(PY) -m pytest -q -m optional

.venv-lowest/installed: requirements.txt requirements-test.txt
	$(PYTHON) -m venv .venv-lowest
	sed 's/>=/==/' requirements.txt > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install -q -r .venv-lowest/requirements.txt -r requirements-test.txt
	touch $@

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n auto -m "not optional"

torture: .venv/installed-test .venv/installed-test-optional
	TORTURE=50 $(PY) -m pytest -q -s tests/torture

bench: .venv/installed-bench
	for name in distillation dumping finetuning prediction predictor serving scaling; do \
	    $(PY) -m bench.$$name $(BENCH) || exit 1; done
	for name in dumping finetuning; do for family in albert modernbert; do \
	    $(PY) -m bench.$$name --family $$family $(BENCH) || exit 1; done; done
	$(PY) -m bench.table

clean:
	rm -rf demo demo-tasks .pytest_cache .ruff_cache

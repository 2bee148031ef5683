# make demo    all five scripts on the embedded sample, a table at the end
# make test    the test suite
# make torture the kill tests with 50 kills of each script, and longer fuzzing
# make bench   the kit beside its peers, short form; fills the README's table
# All set up .venv on first use.

PYTHON ?= python3
PY = .venv/bin/python
SAMPLE = data/sample

.PHONY: demo test torture bench lint clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	$(PY) -m pip install -q -r requirements-test.txt
	touch $@

demo: .venv/installed
	rm -rf demo
	$(PY) train_tokenizer.py --data $(SAMPLE)/train.tsv $(SAMPLE)/unlabeled.tsv --output-dir demo/tokenizer
	$(PY) finetune_teacher.py --train $(SAMPLE)/train.tsv --valid $(SAMPLE)/valid.tsv --output-dir demo/teacher \
	    --scratch 1,128,4 --tokenizer demo/tokenizer/vocab_size_3000 --lr 1e-3 --epochs 8 --max-tokens 1024
	$(PY) dump_logits.py --teacher demo/teacher/teacher.pt --data $(SAMPLE)/train.tsv $(SAMPLE)/unlabeled.tsv \
	    --output-dir demo/logits
	$(PY) distill.py --train $(SAMPLE)/train.tsv $(SAMPLE)/unlabeled.tsv --output-dir demo/students \
	    --logits demo/logits/train.pt demo/logits/unlabeled.pt --valid $(SAMPLE)/valid.tsv \
	    --tokenizer demo/tokenizer/vocab_size_3000 --size small --alpha 0.1 1 --seed 0 1 2 --max-tokens 1024
	$(PY) evaluate.py demo/students/*/student.pt demo/teacher/teacher.pt --data $(SAMPLE)/test.tsv \
	    --seen $(SAMPLE)/train.tsv
	@echo
	$(PY) student.py demo/students/small-alpha0.1-seed0/student.pt "배우들 연기가 최고예요" "돈도 시간도 아까움 환불해주세요"

test: .venv/installed-test
	$(PY) -m ruff check .
	$(PY) -m pytest -q

torture: .venv/installed-test
	TORTURE=50 $(PY) -m pytest -q -s tests/test_kill.py tests/test_fuzz.py

.venv/installed-bench: .venv/installed bench/requirements.txt
	$(PY) -m pip install -q -r bench/requirements.txt
	touch $@

bench: .venv/installed-bench
	for name in distillation dumping finetuning prediction scaling; do \
	    $(PY) -m bench.$$name $(BENCH) || exit 1; done
	$(PY) -m bench.table

clean:
	rm -rf demo .pytest_cache .ruff_cache

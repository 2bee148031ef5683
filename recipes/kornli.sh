#!/bin/sh
# Does one text follow from another: KorNLI, 942,854 translated pairs, XNLI (2,490 and 5,010) to judge. sh recipes/kornli.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# Not measured yet: the train files could not be had where the kit was built.
# The baselines: python -m bench.tfidf --ngrams 2 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
D=data/kornli OUT=${OUT:-runs/kornli}
SIZES=${SIZES:-base tiny} SEEDS=${SEEDS:-0 1 2}

[ -e $D/train.tsv ] || $PY -m data.prepare kornli
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv ${1:+--checkpoint "$1"} --layer-decay 0.9 \
    --output-dir "$OUT/teacher"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv --output-dir "$OUT/logits"
STUDENT="--train $D/train.tsv --valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 \
    --size $SIZES --seed $SEEDS"
$PY distill.py $STUDENT --alpha 1 --output-dir "$OUT/labels"
$PY distill.py $STUDENT --logits "$OUT/logits/train.pt" --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv --all

#!/bin/sh
# Kinds of hate in comments: UnSmile, 15,005 comments with ten labels, 3,737 to test. sh recipes/unsmile.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder. The licence (CC BY-NC-ND 4.0) lets you measure,
# and not pass on what you make of it. Published: micro-F1 0.77 (BERT).
# The baseline: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
D=data/unsmile OUT=${OUT:-runs/unsmile}
SIZES=${SIZES:-base tiny} SEEDS=${SEEDS:-0 1 2}

[ -e $D/train.tsv ] || $PY -m data.prepare unsmile
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv ${1:+--checkpoint "$1"} --layer-decay 0.9 \
    --output-dir "$OUT/teacher"
# Variants of the texts are unlabelled text for the teacher to judge: worth most where a corpus is small.
$PY -m data.augment --data $D/train.tsv --out "$OUT/augmented.tsv"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv "$OUT/augmented.tsv" \
    --output-dir "$OUT/logits"
STUDENT="--valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 --size $SIZES --seed $SEEDS"
$PY distill.py --train $D/train.tsv --alpha 1 $STUDENT --output-dir "$OUT/labels"
$PY distill.py --train $D/train.tsv "$OUT/augmented.tsv" --logits "$OUT/logits/train.pt" "$OUT/logits/augmented.pt" \
    $STUDENT --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv --all

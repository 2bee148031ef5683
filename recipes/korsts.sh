#!/bin/sh
# How similar are two sentences, from 0 to 5: KorSTS, 5,749 pairs, 1,500 and 1,379 to judge. sh recipes/korsts.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# The baselines: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
D=data/korsts OUT=${OUT:-runs/korsts}
SIZES=${SIZES:-base tiny} SEEDS=${SEEDS:-0 1 2}

[ -e $D/train.tsv ] || $PY -m data.prepare korsts
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv ${1:+--checkpoint "$1"} --layer-decay 0.9 \
    --output-dir "$OUT/teacher"
# Variants and new pairs of the texts are unlabelled text for the teacher to judge: worth most where a corpus is small.
$PY -m data.augment --data $D/train.tsv --pairs 4 --symmetric --out "$OUT/augmented.tsv"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv "$OUT/augmented.tsv" \
    --output-dir "$OUT/logits"
STUDENT="--valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 --size $SIZES --seed $SEEDS"
$PY distill.py --train $D/train.tsv --alpha 1 $STUDENT --output-dir "$OUT/labels"
$PY distill.py --train $D/train.tsv "$OUT/augmented.tsv" --logits "$OUT/logits/train.pt" "$OUT/logits/augmented.pt" \
    $STUDENT --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv --all

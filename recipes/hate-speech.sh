#!/bin/sh
# Hate in comments: 7,896 comments as none, offensive or hate, 471 to test. sh recipes/hate-speech.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder. CORPUS=hate-speech-bias or hate-speech-gender
# takes the other answers to the same comments. Published figures are macro-F1, so it chooses the epoch.
# The baseline: python -m bench.tfidf --class-weights balanced --best macro_f1 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
CORPUS=${CORPUS:-hate-speech}
D=data/$CORPUS OUT=${OUT:-runs/$CORPUS}
SIZES=${SIZES:-base tiny} SEEDS=${SEEDS:-0 1 2}

[ -e $D/train.tsv ] || $PY -m data.prepare $CORPUS
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv ${1:+--checkpoint "$1"} --layer-decay 0.9 \
    --class-weights balanced --best macro_f1 --output-dir "$OUT/teacher"
# Variants of the texts are unlabelled text for the teacher to judge: worth most where a corpus is small.
$PY -m data.augment --data $D/train.tsv --out "$OUT/augmented.tsv"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv "$OUT/augmented.tsv" \
    --output-dir "$OUT/logits"
STUDENT="--valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 --size $SIZES --seed $SEEDS \
    --class-weights balanced --best macro_f1"
$PY distill.py --train $D/train.tsv --alpha 1 $STUDENT --output-dir "$OUT/labels"
$PY distill.py --train $D/train.tsv "$OUT/augmented.tsv" --logits "$OUT/logits/train.pt" "$OUT/logits/augmented.pt" \
    $STUDENT --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv --all

#!/bin/sh
# Your own labelled file through the whole chain: sh recipes/mine.sh FILE [CHECKPOINT]
# FILE has the columns text and label (.tsv .csv .jsonl). CHECKPOINT is a hub id or a folder; the default,
# monologg/koelectra-small-v3-discriminator, is downloaded once. models/encoder is here already; "scratch" is a small
# encoder from random weights.
# Run it again to continue after an interruption. Results go to mine/NAME; OUT=DIR names another folder.
# Measured with 2,600 short texts of three classes and "scratch": one minute on two cores, 75 % of 260 test texts.
set -eu
[ $# -ge 1 ] || { sed -n '2,7p' "$0" | cut -c3- >&2; exit 2; }
FILE=$(realpath "$1")
CHECKPOINT=${2:-monologg/koelectra-small-v3-discriminator}
[ ! -d "$CHECKPOINT" ] || CHECKPOINT=$(realpath "$CHECKPOINT")
[ -z "${OUT:-}" ] || OUT=$(realpath -m "$OUT")
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
OUT=${OUT:-mine/$(basename "$FILE" | sed -E 's/(\.(tsv|txt|csv|jsonl))?(\.gz)?$//')}

# The results of one file: another one, or the same with other rows, needs a folder of its own.
SUM=$(cksum < "$FILE")
if [ "$(cat "$OUT/cksum" 2> /dev/null || echo "$SUM")" != "$SUM" ]; then
    echo "error: $OUT has the results of another file; choose another folder: OUT=DIR sh $0 …" >&2
    exit 2
fi
mkdir -p "$OUT"
echo "$SUM" > "$OUT/cksum"
$PY -m data.prepare split "$FILE" --out "$OUT/data"
$PY train_tokenizer.py --data "$OUT/data/train.tsv" --output-dir "$OUT/tokenizer" --min-frequency 2
if [ "$CHECKPOINT" = scratch ]; then
    set -- --scratch 2,128,4 --tokenizer "$OUT/tokenizer/vocab_size_3000" --lr 1e-3 --epochs 8 --max-tokens 1024
else
    set -- --checkpoint "$CHECKPOINT" --lr 2e-4 --layer-decay 0.9
fi
$PY finetune_teacher.py --train "$OUT/data/train.tsv" --valid "$OUT/data/valid.tsv" --output-dir "$OUT/teacher" "$@"
# Variants of the texts are unlabelled text for the teacher to judge: worth most where a file is small.
$PY -m data.augment --data "$OUT/data/train.tsv" --out "$OUT/data/augmented.tsv"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data "$OUT/data/train.tsv" "$OUT/data/augmented.tsv" \
    --output-dir "$OUT/logits"
$PY distill.py --train "$OUT/data/train.tsv" "$OUT/data/augmented.tsv" \
    --logits "$OUT/logits/train.pt" "$OUT/logits/augmented.pt" --valid "$OUT/data/valid.tsv" \
    --tokenizer "$OUT/tokenizer/vocab_size_3000" --size base small --max-tokens 2048 --output-dir "$OUT/students"
echo
$PY evaluate.py "$OUT/students/base/student.pt" "$OUT/students/small/student.pt" "$OUT/teacher/teacher.pt" \
    --data "$OUT/data/test.tsv" --seen "$OUT/data/train.tsv"
echo
head -n 3 "$OUT/data/test.tsv" | awk -F '\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "text") t = i }
    NR > 1 { print $t }' | $PY student.py "$OUT/students/base/student.pt"
echo
echo "python student.py '$OUT/students/base/student.pt' '…' classifies a text of yours"

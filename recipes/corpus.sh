#!/bin/sh
# A public corpus from download to table: sh recipes/corpus.sh CORPUS [CHECKPOINT]
# The recipe of each corpus calls it, and says what to know of that corpus. CORPUS is a name of data.prepare.
# CHECKPOINT is a hub id or a folder; the default is models/encoder. Run it again to continue after an interruption.
# AUGMENT: flags of data.augment, whose variants and new pairs of the texts are added. TASK: flags of the teacher and
# of the students, such as --best macro_f1. STUDENT: flags of the students; ALONE: of those of labels alone.
# START: where students begin, --embeddings FILE or --start FILE.
# TOKENIZER: a folder, instead of a new one. TEACHERS: what teaches, in OUT; labels/base*/student.pt: the students of
# labels alone, all seeds together.
set -eu
[ $# -ge 1 ] || { sed -n '2,9p' "$0" | cut -c3- >&2; exit 2; }
[ ! -d "${2:-}" ] || set -- "$1" "$(cd "$2" && pwd)"  # a folder is meant from where this was called
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
D=data/$1 OUT=${OUT:-runs/$1} TEACHERS=${TEACHERS:-teacher/teacher.pt}
SIZES=${SIZES:-base tiny} SEEDS=${SEEDS:-0 1 2} TASK=${TASK:-}
if echo "$TEACHERS" | grep -q labels/base && ! echo " $SIZES " | grep -q " base "; then
    echo "error: students of base teach here; add base to SIZES (it is $SIZES), or give a CHECKPOINT" >&2
    exit 2
fi
TEXTS=$D/train.tsv LOGITS=$OUT/logits/train.pt

[ -e $D/train.tsv ] || $PY -m data.prepare "$1"
if [ -z "${TOKENIZER:-}" ]; then
    $PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
    TOKENIZER=$OUT/tokenizer/vocab_size_3000
fi
case $TEACHERS in *teacher/teacher.pt*)
    $PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv ${2:+--checkpoint "$2"} --layer-decay 0.9 $TASK \
        --output-dir "$OUT/teacher";;
esac
STUDENT="--valid $D/valid.tsv --tokenizer $TOKENIZER --size $SIZES --seed $SEEDS $TASK ${START:-} ${STUDENT:-}"
$PY distill.py --train $D/train.tsv --alpha 1 $STUDENT ${ALONE:-} --output-dir "$OUT/labels"
if [ -n "${AUGMENT:-}" ]; then
    # Variants are unlabelled text for the teacher to judge: worth most where a corpus is small.
    $PY -m data.augment --data $D/train.tsv $AUGMENT --out "$OUT/augmented.tsv"
    TEXTS="$TEXTS $OUT/augmented.tsv" LOGITS="$LOGITS $OUT/logits/augmented.pt"
fi
MODELS=
for each in $TEACHERS; do MODELS="$MODELS $OUT/$each"; done
$PY dump_logits.py --teacher $MODELS --data $TEXTS --output-dir "$OUT/logits"
$PY distill.py --train $TEXTS --logits $LOGITS $STUDENT --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt $(ls "$OUT/teacher/teacher.pt" 2>/dev/null || true) \
    --data $D/test.tsv --seen $D/train.tsv --all

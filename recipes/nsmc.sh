#!/bin/sh
# Film reviews: NSMC, 150,000 labelled and, if you have them, more without labels. sh recipes/nsmc.sh [CHECKPOINT]
# UNLABELED=FILE adds texts without labels (docs/results.md: the rest of the NSMC crawl, 502,589 reviews).
# Measured on another draw of NSMC with a 6.4-million ELECTRA as teacher (88.3 %), two cores without AMX, n = 3 seeds:
#   Base  labels alone 85.0 %, distilled 87.5 %, with unlabelled text 88.2 %, and a Base among the teachers 88.4 %
#   Tiny  labels alone 84.3 %, distilled 86.5 %, with unlabelled text 87.2 %, and a Base among the teachers 87.3 %
# Time there: teacher 20 min, logits of all 645,089 reviews 8 min, then 8 epochs of Base 19 min, of Tiny 4 min.
# Run it again to continue after an interruption.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
CHECKPOINT=${1:-monologg/koelectra-small-v3-discriminator}
D=data/nsmc OUT=${OUT:-runs/nsmc}
SIZES=${SIZES:-base small mini tiny} SEEDS=${SEEDS:-0 1 2}

[ -e $D/train.tsv ] || $PY -m data.prepare nsmc
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv --checkpoint "$CHECKPOINT" \
    --lr 3e-4 --layer-decay 0.9 --output-dir "$OUT/teacher"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv ${UNLABELED:-} --output-dir "$OUT/logits"
STUDENT="--valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 --size $SIZES --seed $SEEDS"
$PY distill.py --train $D/train.tsv --alpha 1 $STUDENT --output-dir "$OUT/labels"
$PY distill.py --train $D/train.tsv --logits "$OUT/logits/train.pt" $STUDENT --output-dir "$OUT/distilled"
BEST=distilled
if [ -n "${UNLABELED:-}" ]; then
    MORE=$(basename "$UNLABELED" | sed 's/\.gz$//; s/\.[^.]*$//').pt
    $PY distill.py --train $D/train.tsv "$UNLABELED" --logits "$OUT/logits/train.pt" "$OUT/logits/$MORE" $STUDENT \
        --output-dir "$OUT/more"
    # A Base errs at other places than the teacher: the mean of both is the better teacher.
    $PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" "$OUT/more/base/student.pt" \
        --data $D/train.tsv "$UNLABELED" --output-dir "$OUT/logits-both"
    $PY distill.py --train $D/train.tsv "$UNLABELED" --logits "$OUT/logits-both/train.pt" "$OUT/logits-both/$MORE" \
        $STUDENT --output-dir "$OUT/both"
    BEST=both
fi
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/$BEST/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv --all

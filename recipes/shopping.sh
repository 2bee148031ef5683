#!/bin/sh
# Shopping reviews: Naver shopping, 200,000 with stars (4 and 5 positive, 1 and 2 negative). sh recipes/shopping.sh [CHECKPOINT]
# Not measured yet: the file could not be had where the kit was built. Run it again to continue.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
CHECKPOINT=${1:-monologg/koelectra-small-v3-discriminator}
D=data/shopping OUT=${OUT:-runs/shopping}

[ -e $D/train.tsv ] || $PY -m data.prepare shopping
$PY train_tokenizer.py --data $D/train.tsv --output-dir "$OUT/tokenizer"
$PY finetune_teacher.py --train $D/train.tsv --valid $D/valid.tsv --checkpoint "$CHECKPOINT" \
    --lr 2e-4 --layer-decay 0.9 --output-dir "$OUT/teacher"
$PY dump_logits.py --teacher "$OUT/teacher/teacher.pt" --data $D/train.tsv --output-dir "$OUT/logits"
STUDENT="--train $D/train.tsv --valid $D/valid.tsv --tokenizer $OUT/tokenizer/vocab_size_3000 --size base tiny"
$PY distill.py $STUDENT --alpha 1 --output-dir "$OUT/labels"
$PY distill.py $STUDENT --logits "$OUT/logits/train.pt" --output-dir "$OUT/distilled"
$PY evaluate.py "$OUT"/labels/*/student.pt "$OUT"/distilled/*/student.pt "$OUT/teacher/teacher.pt" \
    --data $D/test.tsv --seen $D/train.tsv

#!/bin/sh
# Several labels per text, scores, pairs: make demo-tasks. From the embedded samples to three tables.
# The columns say what is learned: labels in data/sample/several, score in data/sample/scores; text2 makes a row a pair.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python} S=data/sample D=demo-tasks
rm -rf $D
mkdir $D
run() { $PY "$@" > $D/last.log 2>&1 || { cat $D/last.log; exit 1; }; cat $D/last.log >> $D/log; }

printf '\n1  train_tokenizer.py    a vocabulary of 3,000 subwords from 2,795 reviews and 130 pairs\n'
run train_tokenizer.py --data $S/train.tsv $S/unlabeled.tsv $S/several/train.tsv $S/scores/train.tsv \
    $S/pairs/train.tsv --output-dir $D/tokenizer
# Models as small as these gain nothing from a second thread, and on a busy machine threads wait for each other.
THREADS=${OMP_NUM_THREADS:-1}
for TASK in several scores pairs; do
    T=$S/$TASK OUT=$D/$TASK MORE=$S/unlabeled.tsv NEW= OTHERS="735 reviews without answers"
    # There are no pairs without labels, so new ones are made of the texts of the 130.
    [ $TASK != pairs ] || MORE= NEW="--pairs 4 --symmetric" OTHERS="new pairs of their texts"
    printf '\n2  finetune_teacher.py   %s: models/encoder on 130 rows\n' $TASK
    run finetune_teacher.py --train $T/train.tsv --valid $T/valid.tsv --output-dir $OUT/teacher \
        --lr 1e-3 --layer-decay 0.8 --epochs 12 --max-tokens 128
    tail -n 1 $D/log
    printf '\n3  dump_logits.py        its logits of them, of %s, and of variants of all\n' "$OTHERS"
    run -m data.augment --data $T/train.tsv $MORE --times 2 $NEW --out $OUT/augmented.tsv
    run dump_logits.py --teacher $OUT/teacher/teacher.pt --data $T/train.tsv $MORE $OUT/augmented.tsv \
        --output-dir $OUT/logits
    printf '\n4  distill.py            a small BiLSTM on those logits, and one on the 130 answers alone\n'
    STUDENT="--valid $T/valid.tsv --tokenizer $D/tokenizer/vocab_size_3000 --size small"
    OMP_NUM_THREADS=$THREADS run distill.py --train $T/train.tsv --alpha 1 $STUDENT --max-tokens 256 --epochs 40 \
        --output-dir $OUT/labels
    OMP_NUM_THREADS=$THREADS run distill.py --train $T/train.tsv $MORE $OUT/augmented.tsv --alpha 0.1 $STUDENT \
        --logits $OUT/logits/train.pt ${MORE:+$OUT/logits/unlabeled.pt} $OUT/logits/augmented.pt --max-tokens 1024 \
        --output-dir $OUT/distilled
    printf '\n5  evaluate.py           40 rows that none of them has seen\n\n'
    $PY evaluate.py $OUT/labels/*/student.pt $OUT/distilled/*/student.pt $OUT/teacher/teacher.pt --data $T/test.tsv
done
printf '\n6  student.py            what an application calls\n'
$PY student.py $D/several/distilled/small/student.pt "배송은 빠른데 상자가 다 찌그러졌어요" "싸고 튼튼해요"
$PY student.py $D/scores/distilled/small/student.pt "인생 맛집 찾았어요 또 갈게요" "다시는 안 갑니다 최악"
printf '우산을 안 가져왔어\t우산을 챙겨 왔어\n' | $PY student.py $D/pairs/distilled/small/student.pt
cat <<'END'

labels/…     trained on 130 answers alone
distilled/…  trained on the teacher's logits
teacher      models/encoder, fine-tuned on 130 rows

Everything is in demo-tasks/. 40 rows are few: mind the intervals. For several labels, and for pairs, the teacher itself
is weak here. data/sample/similarity has the same pairs with a score from 0 to 5.
END

#!/bin/sh
# Several labels per text, and scores: make demo-tasks. To two tables in a minute and a half on two cores.
# The column of answers says what is learned: labels in data/sample/several, score in data/sample/scores.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python} S=data/sample D=demo-tasks
rm -rf $D
mkdir $D
run() { $PY "$@" > $D/last.log 2>&1 || { cat $D/last.log; exit 1; }; cat $D/last.log >> $D/log; }

printf '\n1  train_tokenizer.py    a vocabulary of 3,000 subwords from 2,795 reviews\n'
run train_tokenizer.py --data $S/train.tsv $S/unlabeled.tsv $S/several/train.tsv $S/scores/train.tsv \
    --output-dir $D/tokenizer
# Models as small as these gain nothing from a second thread, and on a busy machine threads wait for each other.
THREADS=${OMP_NUM_THREADS:-1}
for TASK in several scores; do
    T=$S/$TASK OUT=$D/$TASK
    printf '\n2  finetune_teacher.py   %s: models/encoder on 130 reviews\n' $TASK
    run finetune_teacher.py --train $T/train.tsv --valid $T/valid.tsv --output-dir $OUT/teacher \
        --lr 1e-3 --layer-decay 0.8 --epochs 12 --max-tokens 128
    tail -n 1 $D/log
    printf '\n3  dump_logits.py        its logits of them, of 735 reviews without answers, and of variants of all\n'
    run -m data.augment --data $T/train.tsv $S/unlabeled.tsv --times 2 --out $OUT/augmented.tsv
    run dump_logits.py --teacher $OUT/teacher/teacher.pt --data $T/train.tsv $S/unlabeled.tsv $OUT/augmented.tsv \
        --output-dir $OUT/logits
    printf '\n4  distill.py            small BiLSTMs: three seeds on those logits, three on the 130 answers alone\n'
    OMP_NUM_THREADS=$THREADS run distill.py --train $T/train.tsv $S/unlabeled.tsv $OUT/augmented.tsv \
        --logits $OUT/logits/train.pt $OUT/logits/unlabeled.pt $OUT/logits/augmented.pt --valid $T/valid.tsv \
        --tokenizer $D/tokenizer/vocab_size_3000 --size small --alpha 0.1 --seed 0 1 2 --max-tokens 1024 \
        --output-dir $OUT
    OMP_NUM_THREADS=$THREADS run distill.py --train $T/train.tsv --valid $T/valid.tsv \
        --tokenizer $D/tokenizer/vocab_size_3000 --size small --alpha 1 --seed 0 1 2 --max-tokens 256 --epochs 40 \
        --output-dir $OUT
    printf '\n5  evaluate.py           40 reviews that none of them has seen\n\n'
    $PY evaluate.py $OUT/small-alpha1*/student.pt $OUT/small/student.pt $OUT/small-seed*/student.pt \
        $OUT/teacher/teacher.pt --data $T/test.tsv
done
printf '\n6  student.py            what an application calls\n'
$PY student.py $D/several/small/student.pt "배송은 빠른데 상자가 다 찌그러졌어요" "싸고 튼튼해요"
$PY student.py $D/scores/small/student.pt "인생 맛집 찾았어요 또 갈게요" "다시는 안 갑니다 최악"
cat <<'END'

small-alpha1…  trained on 130 answers alone
small…         trained on the teacher's logits
teacher        models/encoder, fine-tuned on 130 reviews

Everything is in demo-tasks/. 40 reviews are few: mind the intervals. For several labels the teacher itself is weak here.
END

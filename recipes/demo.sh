#!/bin/sh
# The whole chain on the embedded sample (3,335 reviews): make demo. A minute and a half on two cores.
# Expected: labels alone about 63.5 %, distilled about 77.5 % of 500 test reviews (the largest class has 54.8 %).
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python} S=data/sample D=demo
rm -rf $D
mkdir $D
step() { printf '\n%s\n' "$*"; }
run() { $PY "$@" > $D/last.log 2>&1 || { cat $D/last.log; exit 1; }; cat $D/last.log >> $D/log; }

step "1  train_tokenizer.py    a vocabulary of 3,000 subwords from 2,535 reviews"
run train_tokenizer.py --data $S/train.tsv $S/unlabeled.tsv --output-dir $D/tokenizer
tail -n 1 $D/log
step "2  finetune_teacher.py   the encoder of models/encoder on 1,800 labelled reviews, 4 epochs"
run finetune_teacher.py --train $S/train.tsv --valid $S/valid.tsv --output-dir $D/teacher \
    --lr 1e-4 --layer-decay 0.9 --epochs 4 --max-tokens 1024
tail -n 1 $D/log
step "3  dump_logits.py        its logits, once, of all 2,535 reviews and of variants that data.augment makes of them"
run -m data.augment --data $S/train.tsv $S/unlabeled.tsv --times 4 --out $D/augmented.tsv
run dump_logits.py --teacher $D/teacher/teacher.pt --data $S/train.tsv $S/unlabeled.tsv $D/augmented.tsv \
    --output-dir $D/logits
sed -n '/bytes/p' $D/last.log
step "4  distill.py            six small BiLSTMs: three seeds on those logits, three on labels alone"
# Models as small as these gain nothing from a second thread, and on a busy machine threads wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run distill.py --train $S/train.tsv $S/unlabeled.tsv $D/augmented.tsv \
    --logits $D/logits/train.pt $D/logits/unlabeled.pt $D/logits/augmented.pt \
    --valid $S/valid.tsv --tokenizer $D/tokenizer/vocab_size_3000 --size small --alpha 0.1 1 --seed 0 1 2 \
    --max-tokens 1024 --output-dir $D
tail -n 1 $D/log
step "5  evaluate.py           on 500 reviews that none of them has seen"
echo
$PY evaluate.py $D/small-alpha1/student.pt $D/small-alpha1-seed1/student.pt $D/small-alpha1-seed2/student.pt \
    $D/small/student.pt $D/small-seed1/student.pt $D/small-seed2/student.pt $D/teacher/teacher.pt --data $S/test.tsv
step "6  student.py            what an application calls"
$PY student.py $D/small/student.pt "배우들 연기가 최고예요" "돈도 시간도 아까움 환불해주세요"
cat <<'END'

small-alpha1…  trained on labels alone
small…         trained on the teacher's logits: 44 times smaller than the teacher, and much better than labels alone
teacher        models/encoder, fine-tuned on 1,800 reviews

Everything is in demo/. Next: your own file of texts and labels, sh recipes/mine.sh FILE (README, "Your own data").
END

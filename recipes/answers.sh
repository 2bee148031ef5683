#!/bin/sh
# A language model teaches: ask it about every text, and distil its answers. sh recipes/answers.sh
# ASK is a command of yours: it reads rows such as {"row": 7, "text": "좋아요"} and writes, in any order, lines such as
# {"row": 7, "1": 0.93, "0": 0.07}. Rows that fail are asked again, three times in all; those that have no answer then
# are left out. Run it again to ask for them once more: rm -r OUT/logits OUT/students first, as other rows teach then.
# The default is a stub that looks for a few words, fails at every ninth row and answers every seventh twice.
set -eu
cd "$(dirname "$0")/.."
PY=${PYTHON:-python}
D=${D:-data/sample} OUT=${OUT:-runs/answers} SIZES=${SIZES:-base tiny}

stub() {
    awk '{ match($0, /[0-9]+/); row = substr($0, RSTART, RLENGTH)
           p = /최고|재밌|재미있|감동|좋/ ? 0.9 : /최악|별로|지루|쓰레기|아깝/ ? 0.1 : 0.5
           answer = NR % 9 ? sprintf("\"1\": %.2f, \"0\": %.2f", p, 1 - p) : "\"error\": \"timeout\""
           for (i = 0; i <= (row % 7 == 0); i++) printf "{\"row\": %d, %s}\n", row, answer }'
}

mkdir -p "$OUT"
: >> "$OUT/answers.jsonl"
for try in 1 2 3; do
    $PY extra/import_logits.py "$OUT/answers.jsonl" --data $D/unlabeled.tsv --unanswered "$OUT/ask.jsonl"
    [ -s "$OUT/ask.jsonl" ] || break
    ${ASK:-stub} < "$OUT/ask.jsonl" >> "$OUT/answers.jsonl" || echo "try $try broke off; what came is kept" >&2
done
$PY extra/import_logits.py "$OUT/answers.jsonl" --data $D/unlabeled.tsv --out "$OUT/logits/answered.pt" \
    --answered "$OUT/answered.jsonl" --overwrite
$PY train_tokenizer.py --data "$OUT/answered.jsonl" --output-dir "$OUT/tokenizer"
$PY distill.py --train "$OUT/answered.jsonl" --logits "$OUT/logits/answered.pt" --valid $D/valid.tsv \
    --tokenizer "$OUT/tokenizer/vocab_size_3000" --size $SIZES --output-dir "$OUT/students"
$PY evaluate.py "$OUT"/students/*/student.pt --data $D/test.tsv

#!/usr/bin/env bash
# Ten minutes of a CUDA machine, with PyTorch and tokenizers but no network: what is it worth to the kit?
#
#   bash bench/gpu.sh DATA OUT [PART…]              # all parts, in this order, which is that of their value
#   SMALL=1 bash bench/gpu.sh data/sample OUT       # on a CPU, a minute or two; the figures mean nothing
#
# chain     the five scripts on data/sample, one after the other
# equality  the same models and the same training on the CPU and on the GPU: the largest difference
# epochs    seconds of an epoch of each size, how busy the GPU is, and what the time goes into
# pretrain  an encoder, for MINUTES
# teacher   that encoder (else models/encoder) fine-tuned, and its logits of all texts
# students  all five sizes on those logits, with their accuracy on the validation rows
#
# reads   DATA/train.tsv (columns text or document, and label), 5 % of which become validation rows, and if they are
#         there DATA/unlabeled.tsv and DATA/mixed.tsv, texts to pretrain on in place of the others; each also .gz
# writes  OUT/table.md, OUT/log, all that the parts made in pieces of at most 15 MiB: cat OUT/results.tgz.* | tar -xz
#         The table names every part: one that failed, or was left out as DEADLINE seconds were over, stops no other.
#         The exit code is 0 only if every part is ok.
# again   with the same WORK=FOLDER, which is kept, later parts find what earlier ones made; the table has all of them
set -uo pipefail
[ $# -ge 2 ] || { sed -n '3,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 2; }
DATA=$(cd "$1" && pwd) && mkdir -p "$2" && OUT=$(cd "$2" && pwd) || exit 2
shift 2
cd "$(dirname "$0")/.." || exit 2
ALL="chain equality epochs pretrain teacher students"
for part in "$@"; do [[ " $ALL " == *" $part "* ]] || { echo "no part is called $part; there are: $ALL"; exit 2; }; done

if [ -n "${SMALL:-}" ]; then  # a form that a test runs on one core
    : "${DEVICE:=cpu}" "${ROWS:=60}" "${MINUTES:=0.08}" "${EPOCHS:=1}" "${STEPS:=2}"
    : "${PLAN:=base:128 base:256 base:512 large:512 small:512 mini:512 tiny:512}"
    : "${PRETRAIN:=--layers 1 --hidden-dim 32 --tokenizer models/encoder --max-tokens 512}"
    : "${TEACHER:=--epochs 1 --max-tokens 1024}" "${STUDENTS:=--epochs 1 --max-tokens 512}"
fi
: "${DEVICE:=cuda}" "${ROWS:=1000000000}" "${MINUTES:=2}" "${EPOCHS:=3}" "${STEPS:=30}" "${DEADLINE:=480}"
# size:max_tokens, and a peak learning rate other than the default where batches are large
: "${PLAN:=base:4096 base:16384 base:16384:8e-3 base:65536 base:65536:8e-3 large:16384 small:16384
    mini:16384 tiny:16384}"
: "${PRETRAIN:=--layers 12 --hidden-dim 256 --embedding-dim 128 --tokenizer models/encoder
    --max-tokens 65536 --lr 1e-3}"
: "${TEACHER:=--epochs 3 --lr 3e-4 --layer-decay 0.9 --max-tokens 16384}" "${STUDENTS:=--epochs 5 --max-tokens 16384}"
[ -n "${WORK:-}" ] || { WORK=$(mktemp -d) && trap 'rm -rf "$WORK"' EXIT; }
PY=${PYTHON:-python3}
D=$WORK/data R=$WORK/results
mkdir -p "$D" "$R/logs" "$WORK/figures"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true

say() { echo "[$SECONDS s] $*" | tee -a "$OUT/log"; }
figure() { echo "| $PART | $1 | $2 |" >> "$WORK/figures/$PART"; }
figures() {  # of standard input; a line without a tab is a library's
    while IFS=$'\t' read -r what value; do if [ -n "$value" ]; then figure "$what" "$value"; else echo "$what"; fi; done
}
scores() { awk -F' *[|] *' '/[.]pt/ {print $2 "\taccuracy " $3}'; }  # of evaluate.py's table

table() {
    echo "| part | what | figure |"
    echo "|---|---|---|"
    for part in machine $ALL; do
        if [ -e "$WORK/figures/$part" ]; then cat "$WORK/figures/$part"; fi
    done
}

# ---- what several parts need, made once --------------------------------------------------------------------

texts() {  # $D/train.tsv, valid.tsv; FILES: it and unlabeled.tsv; LOGITS: the names of their logits
    if [ ! -e "$D/valid.tsv" ]; then
        for file in "$DATA"/{train,unlabeled,mixed}.tsv{,.gz}; do
            [ -e "$file" ] || continue
            name=$(basename "$file" .gz) read=cat
            [ "$file" = "${file%.gz}" ] || read="gzip -dc"
            $read "$file" | awk -v rows="$ROWS" 'NR <= rows + 1' > "$D/$name"
        done
        mv "$D/train.tsv" "$D/labelled.tsv"
        $PY -m data.prepare split "$D/labelled.tsv" --test-percent 0 --out "$D"
    fi
    FILES=("$D/train.tsv") LOGITS=(train.pt)
    if [ -e "$D/unlabeled.tsv" ]; then FILES+=("$D/unlabeled.tsv") LOGITS+=(unlabeled.pt); fi
}

tokenizer() {
    [ -e "$WORK/tokenizer" ] || $PY train_tokenizer.py --data "$D/train.tsv" --output-dir "$WORK/tokenizer"
}

# ---- the parts ---------------------------------------------------------------------------------------------

chain() {
    local C=$WORK/chain
    rm -rf "$C"
    mkdir "$C"
    for name in train valid test unlabeled; do
        awk -v rows="$ROWS" 'NR <= rows + 1' data/sample/$name.tsv > "$C/$name.tsv"
    done
    $PY train_tokenizer.py --data "$C/train.tsv" "$C/unlabeled.tsv" --output-dir "$C/tokenizer"
    $PY finetune_teacher.py --train "$C/train.tsv" --valid "$C/valid.tsv" --checkpoint models/encoder --lr 3e-4 \
        --layer-decay 0.9 --epochs "$EPOCHS" --max-tokens 1024 --device "$DEVICE" --output-dir "$C/teacher"
    $PY dump_logits.py --teacher "$C/teacher/teacher.pt" --data "$C/train.tsv" "$C/unlabeled.tsv" --device "$DEVICE" \
        --output-dir "$C/logits"
    $PY distill.py --train "$C/train.tsv" "$C/unlabeled.tsv" --logits "$C/logits/train.pt" "$C/logits/unlabeled.pt" \
        --valid "$C/valid.tsv" --tokenizer "$C/tokenizer/vocab_size_3000" --size small --epochs "$EPOCHS" \
        --max-tokens 1024 --device "$DEVICE" --output-dir "$C"
    $PY evaluate.py "$C/small/student.pt" "$C/teacher/teacher.pt" --data "$C/test.tsv" --markdown --device "$DEVICE" \
        | sed "s|$C/||" | scores | figures
}

equality() {
    $PY -m bench.gpu equality --device "$DEVICE" --rows "$((ROWS < 256 ? ROWS / 4 : 256))" | figures
}

epochs() {
    texts
    tokenizer
    $PY dump_logits.py --teacher models/base.pt --data "${FILES[@]}" --max-tokens 131072 --device "$DEVICE" \
        --output-dir "$WORK/base-logits"
    $PY -m bench.gpu epochs --train "${FILES[@]}" --logits "${LOGITS[@]/#/$WORK/base-logits/}" --valid "$D/valid.tsv" \
        --tokenizer "$WORK/tokenizer/vocab_size_3000" --students $PLAN --epochs "$EPOCHS" --steps "$STEPS" \
        --device "$DEVICE" --output-dir "$R/profiles" | figures
}

pretrain() {
    rm -rf "$WORK/pretrained" "$R/encoder"
    texts
    if [ -e "$D/mixed.tsv" ]; then FILES=("$D/mixed.tsv"); fi
    $PY extra/pretrain_teacher.py --train "${FILES[@]}" $PRETRAIN --hours "$(awk "BEGIN {print $MINUTES / 60}")" \
        --device "$DEVICE" --output-dir "$WORK/pretrained"
    figure "$MINUTES minutes" "$(grep '^step' "$LOG" | tail -n 1)"
    $PY -m bench.gpu half "$WORK/pretrained" "$R/encoder"
}

teacher() {
    rm -rf "$WORK/teacher" "$R/teacher.pt" "$R/logits"
    texts
    local encoder=models/encoder
    if [ -e "$R/encoder" ]; then encoder=$R/encoder; fi
    $PY finetune_teacher.py --train "$D/train.tsv" --valid "$D/valid.tsv" --checkpoint "$encoder" $TEACHER \
        --device "$DEVICE" --output-dir "$WORK/teacher"
    $PY -m bench.gpu half "$WORK/teacher/teacher.pt" "$R/teacher.pt"
    $PY dump_logits.py --teacher "$R/teacher.pt" --data "${FILES[@]}" "$D/valid.tsv" --dtype float16 \
        --max-tokens 65536 --device "$DEVICE" --output-dir "$R/logits"
    grep 'texts/s' "$LOG" | sed "s|$D/||; s|: |\t|" | figures
}

students() {
    rm -rf "$WORK/students" "$R/students"
    texts
    tokenizer
    $PY distill.py --train "${FILES[@]}" --logits "${LOGITS[@]/#/$R/logits/}" --valid "$D/valid.tsv" \
        --tokenizer "$WORK/tokenizer/vocab_size_3000" --size large base small mini tiny $STUDENTS \
        --device "$DEVICE" --output-dir "$WORK/students"
    mkdir "$R/students"
    for size in large base small mini tiny; do cp "$WORK/students/$size/student.pt" "$R/students/$size.pt"; done
    $PY evaluate.py "$R"/students/*.pt "$R/teacher.pt" --data "$D/valid.tsv" --markdown --device "$DEVICE" \
        | sed "s|$R/||" | tee "$R/students/table.md" | scores | figures
}

# ---- one after the other -----------------------------------------------------------------------------------

PART=machine
rm -f "$WORK/figures/machine"
$PY - "$DEVICE" << 'P' | figures || exit 2
import datetime, os, sys, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU that PyTorch can use"
print(f"GPU\t{name}\ndevice\t{sys.argv[1]}, {os.cpu_count()} CPU cores")
print(f"PyTorch\t{torch.__version__}\ndate\t{datetime.date.today()}")
P
say "$(head -n 1 "$WORK/figures/machine")"
code=0
for PART in ${*:-$ALL}; do
    start=$SECONDS LOG=$R/logs/$PART
    rm -f "$WORK/figures/$PART" "$LOG"
    touch "$WORK/started"
    if [ "$SECONDS" -ge "$DEADLINE" ]; then
        ended="skipped: $DEADLINE s were over"
    else
        (set -e; $PART) > "$LOG" 2>&1
        if [ $? = 0 ]; then ended=ok; else ended="FAILED: $(tail -n 1 "$LOG" | tr '|' '/')"; fi
    fi
    [ "$ended" = ok ] || code=1
    files=$(cd "$R" && find . -type f -newer "$WORK/started" ! -name '.*' ! -path './logs/*' | sort \
        | sed 's|^[.]/| |' | tr -d '\n')
    figure "**$ended**" "$((SECONDS - start)) s${files:+;$files}"
    say "$PART $ended, $((SECONDS - start)) s"
    table > "$OUT/table.md"
    rm -rf "$WORK/pieces"
    mkdir "$WORK/pieces"
    tar -C "$WORK" --exclude '*.lock' -cf - results | gzip -1 | split -b 15m - "$WORK/pieces/results.tgz."
    rm -f "$OUT"/results.tgz.*
    mv "$WORK"/pieces/* "$OUT"  # only now, so that those of the parts before are there until then
done
cat "$OUT/table.md"
exit $code

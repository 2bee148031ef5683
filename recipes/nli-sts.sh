#!/bin/sh
# Inference first, then similarity: students of KLUE-NLI are where those of KorSTS begin. sh recipes/nli-sts.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach.
# Run it again to continue after an interruption.
set -eu
HERE=$(dirname "$0")
export SIZES=base
sh "$HERE/klue-nli.sh" "$@"
[ $# -gt 0 ] && FIRST=base || FIRST=base-encoder  # its embeddings come from the checkpoint, or from models/encoder
export TOKENIZER=runs/klue-nli/tokenizer/vocab_size_3000 START="--start runs/klue-nli/distilled/$FIRST/student.pt"
OUT=runs/nli-sts exec sh "$HERE/korsts.sh" "$@"

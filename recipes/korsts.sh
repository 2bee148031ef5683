#!/bin/sh
# How similar are two sentences, from 0 to 5: KorSTS, 5,749 pairs, 1,500 and 1,379 to judge. sh recipes/korsts.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach: models/encoder knows too little.
# The baselines: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
[ $# -gt 0 ] || export TEACHERS="labels/base*/student.pt" START="${START:---embeddings models/encoder}"
export ALONE="--dropout 0.3" AUGMENT="--times 0 --pairs 4 --symmetric"
exec sh "$(dirname "$0")/corpus.sh" korsts "$@"

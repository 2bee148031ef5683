#!/bin/sh
# Does one text follow from another: KLUE-NLI, 24,998 pairs in three classes, 3,000 (dev) to test. sh recipes/klue-nli.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach: models/encoder knows too little.
# The baselines: python -m bench.tfidf --ngrams 2 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
[ $# -gt 0 ] || export TEACHERS="labels/base*/student.pt" START="${START:---embeddings models/encoder}"
export ALONE="--dropout 0.3" AUGMENT="--times 0 --pairs 2"
exec sh "$(dirname "$0")/corpus.sh" klue-nli "$@"

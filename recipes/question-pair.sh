#!/bin/sh
# Do two questions ask the same: Question Pair, 6,888 pairs, 688 to test. sh recipes/question-pair.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach: models/encoder knows too little.
# The test pairs are of another kind than the training pairs; the publisher says so too.
# The baselines: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
[ $# -gt 0 ] || export TEACHERS="labels/base*/student.pt"
export ALONE="--dropout 0.3" AUGMENT="--times 0 --pairs 4 --symmetric"
exec sh "$(dirname "$0")/corpus.sh" question-pair "$@"

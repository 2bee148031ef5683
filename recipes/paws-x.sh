#!/bin/sh
# Do two sentences of the same words say the same: PAWS-X in Korean, 49,401 pairs, 2,000 and 2,000 to judge. sh recipes/paws-x.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach: models/encoder knows too little.
# Not measured yet: the train file could not be had where the kit was built.
# The baselines: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
[ $# -gt 0 ] || export TEACHERS="labels/base*/student.pt" START="${START:---embeddings models/encoder}"
export ALONE="--dropout 0.3" AUGMENT="--times 1 --pairs 1 --symmetric"
exec sh "$(dirname "$0")/corpus.sh" paws-x "$@"

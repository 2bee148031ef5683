#!/bin/sh
# Does one text follow from another: KorNLI, 942,854 translated pairs, XNLI (2,490 and 5,010) to judge. sh recipes/kornli.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder. Without one the students of labels alone teach: models/encoder knows too little.
# Not measured yet: the train files could not be had where the kit was built.
# The baselines: python -m bench.tfidf --ngrams 2 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
[ $# -gt 0 ] || export TEACHERS="labels/base*/student.pt" START="${START:---embeddings models/encoder}"
export ALONE="--dropout 0.3"
exec sh "$(dirname "$0")/corpus.sh" kornli "$@"

#!/bin/sh
# Kinds of hate in comments: UnSmile, 15,005 comments with ten labels, 3,737 to test. sh recipes/unsmile.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder. The licence (CC BY-NC-ND 4.0) lets you measure,
# and not pass on what you make of it. Published: micro-F1 0.77 (BERT).
# The baseline: python -m bench.tfidf --best micro_f1 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
export AUGMENT="--times 4" TASK="--best micro_f1"
exec sh "$(dirname "$0")/corpus.sh" unsmile "$@"

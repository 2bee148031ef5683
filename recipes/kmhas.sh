#!/bin/sh
# Kinds of hate in news comments: K-MHaS, 78,977 comments with nine labels, 21,939 to test. sh recipes/kmhas.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# Not measured yet: the train file could not be had where the kit was built. Published: micro-F1 0.85 (KR-BERT).
# The baseline: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
exec sh "$(dirname "$0")/corpus.sh" kmhas "$@"

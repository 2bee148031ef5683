#!/bin/sh
# Emotions in comments: KOTE, 40,000 comments with 44 labels, 5,000 to test. sh recipes/kote.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# Not measured yet: the train file could not be had where the kit was built. Published: macro-F1 0.56 (KcELECTRA).
# The baseline: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
exec sh "$(dirname "$0")/corpus.sh" kote "$@"

#!/bin/sh
# Intents of utterances: 3i4K, 55,134 in seven classes, 6,121 to test. sh recipes/3i4k.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# 1.9 % of the training texts are test texts too, as published; the table also scores without them.
# The baseline: python -m bench.tfidf --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
exec sh "$(dirname "$0")/corpus.sh" 3i4k "$@"

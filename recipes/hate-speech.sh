#!/bin/sh
# Hate in comments: 7,896 comments as none, offensive or hate, 471 to test. sh recipes/hate-speech.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder. CORPUS=hate-speech-bias or hate-speech-gender
# takes the other answers to the same comments. Published figures are macro-F1, so it chooses the epoch.
# The baseline: python -m bench.tfidf --class-weights balanced --best macro_f1 --train … --valid … --test …
# Run it again to continue after an interruption.
set -eu
export AUGMENT="--times 4" TASK="--class-weights balanced --best macro_f1"
exec sh "$(dirname "$0")/corpus.sh" "${CORPUS:-hate-speech}" "$@"

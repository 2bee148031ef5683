#!/bin/sh
# Game reviews: Steam, 100,000. sh recipes/steam.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# Not measured yet: the file could not be had where the kit was built.
# Run it again to continue after an interruption.
set -eu
exec sh "$(dirname "$0")/corpus.sh" steam "$@"

#!/bin/sh
# Shopping reviews: Naver shopping, 200,000 with stars (4 and 5 positive, 1 and 2 negative). sh recipes/shopping.sh [CHECKPOINT]
# CHECKPOINT is a hub id or a folder; the default is models/encoder.
# Not measured yet: the file could not be had where the kit was built.
# Run it again to continue after an interruption.
set -eu
exec sh "$(dirname "$0")/corpus.sh" shopping "$@"

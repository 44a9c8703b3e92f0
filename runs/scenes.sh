#!/usr/bin/env bash
# The model in the box: trains it, measures it and puts it into the package. Stop it at any time; the same line goes on.
#
#   runs/scenes.sh [RUN_FOLDER] [DEVICE]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-work/scenes}
device=${2:-cpu}
bin=.venv/bin

"$bin/unidiffuser" train scenes --run "$run" --device "$device"
"$bin/python" runs/ship.py "$run/final" src/unidiffuser/models/scenes --samples 1000

#!/usr/bin/env bash
# The one-step student of the model in the box: taught, measured beside its teacher, and put into the package. Stop it
# at any time; the same line goes on.
#
#   runs/scenes-1step.sh [RUN_FOLDER] [DEVICE] [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-work/scenes-1step}
device=${2:-cpu}
steps=${3:-8000}
bin=.venv/bin

"$bin/unidiffuser" distill scenes --data scenes --divergence forward-kl --steps "$steps" --run "$run" --device "$device"
"$bin/python" runs/ship.py "$run/final" src/unidiffuser/models/scenes-1step --samples 1000
"$bin/unidiffuser" compare scenes scenes-1step --text "a large red circle above a small blue square" -n 8 --seed 1 \
    --out "$run/compare.png" --force

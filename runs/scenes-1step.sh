#!/usr/bin/env bash
# The one-step student of the model in the box: taught, measured beside its teacher, and put into the package. Stop it
# at any time; the same line goes on.
#
# It is to be as good as its teacher is when guided by 2, so it is taught that; docs/one-step.md says what this costs.
#
#   runs/scenes-1step.sh [RUN_FOLDER] [DEVICE] [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-work/scenes-1step}
device=${2:-cpu}
steps=${3:-8000}
bin=.venv/bin

"$bin/unidiffuser" distill scenes --data scenes --divergence forward-kl --guidance 2 --steps "$steps" --run "$run" \
    --device "$device"
"$bin/python" runs/ship.py "$run/final" src/unidiffuser/models/scenes-1step --samples 1000
"$bin/unidiffuser" compare scenes scenes-1step --text "a large red circle above a small blue square" -n 8 --seed 1 \
    --out "$run/compare.png" --force

#!/usr/bin/env bash
# Three modalities paired by class: written digit, spoken digit, word. All 19 distributions from one network.
# Stop it at any time; the same line goes on. DATA holds written_digits/ and spoken_digits/.
#
#   runs/digits.sh DATA [RUN_FOLDER] [DEVICE]
#   SIZE=small STEPS=50000 runs/digits.sh ...      another size is another run: give it another folder
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 run=${2:-work/digits} device=${3:-cpu}
bin=.venv/bin

"$bin/python" runs/split.py digits "$data" "$run/data"
"$bin/unidiffuser" train --data "$run/data/train" --run "$run" --name digits --size "${SIZE:-tiny}" \
    --steps "${STEPS:-20000}" --batch 32 --set network.patch=8 --device "$device"
"$bin/unidiffuser" evaluate "$run/final" --data "$run/data/held" --samples 1000 --device "$device" \
    --html "$run/report.html" --force --json > "$run/report.json"

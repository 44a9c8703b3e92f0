#!/usr/bin/env bash
# Names of pictures and pictures of names: emoji at 64 x 64, judged on a person and a skin tone never seen together.
# Stop it at any time; the same line goes on.
#
#   runs/emoji.sh FOLDER [RUN_FOLDER] [DEVICE]
#   SIZE=small STEPS=50000 runs/emoji.sh ...      another size is another run: give it another folder
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 run=${2:-work/emoji} device=${3:-cpu}
bin=.venv/bin

"$bin/python" runs/split.py emoji "$data" "$run/data"
"$bin/unidiffuser" train --data "$run/data/train" --run "$run" --name emoji --size "${SIZE:-tiny}" \
    --steps "${STEPS:-20000}" --batch 32 --set network.patch=8 --device "$device"
"$bin/unidiffuser" evaluate "$run/final" --data "$run/data/held" --samples 500 --device "$device" \
    --html "$run/report.html" --force --json > "$run/report.json"

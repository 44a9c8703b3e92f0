#!/usr/bin/env bash
# 32 x 32 pictures with class names, a teacher for distillation. Stop it at any time; the same line goes on.
# FOLDER holds train.parquet. INCEPTION=FILE judges by the published FID.
#
#   runs/cifar10.sh FOLDER [RUN_FOLDER] [DEVICE]
#   SIZE=small STEPS=50000 runs/cifar10.sh ...      another size is another run: give it another folder
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 run=${2:-work/cifar10} device=${3:-cpu}
bin=.venv/bin

"$bin/python" runs/split.py cifar10 "$data" "$run/data"
"$bin/unidiffuser" train --data "$run/data/train" --run "$run" --name cifar10 --size "${SIZE:-tiny}" \
    --steps "${STEPS:-20000}" --batch 32 --set network.patch=4 --device "$device"
"$bin/unidiffuser" evaluate "$run/final" --data "$run/data/held" --samples 2000 --device "$device" \
    ${INCEPTION:+--inception "$INCEPTION"} --html "$run/report.html" --force --json > "$run/report.json"

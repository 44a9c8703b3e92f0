#!/usr/bin/env bash
# The one-step student of `runs/digits.sh`: written digit, spoken digit and word, all 19 distributions, one forward a
# sample. Taught on what its teacher was taught on, and both judged on what was held back from both.
# The teacher samples guided by 1, which is what the student is to be as good as; docs/one-step.md says what this costs.
# Stop it at any time; the same line goes on.
#
#   runs/digits-1step.sh [TEACHER_RUN] [RUN_FOLDER] [DEVICE]
#   STEPS=50000 runs/digits-1step.sh ...      another budget is another run: give it another folder
set -euo pipefail
cd "$(dirname "$0")/.."
teacher=${1:-work/digits} run=${2:-work/digits-1step} device=${3:-cpu}
bin=.venv/bin

"$bin/unidiffuser" distill "$teacher/final" --data "$teacher/data/train" --divergence forward-kl --guidance 1 \
    --steps "${STEPS:-12000}" --run "$run" --device "$device"
measure() { # NAME MODEL
    "$bin/unidiffuser" evaluate "$2" --data "$teacher/data/held" --samples 1000 --device "$device" \
        --html "$run/$1.html" --force --json > "$run/$1.json"
}
measure teacher "$teacher/final"
measure student "$run/final"
"$bin/unidiffuser" compare "$teacher/final" "$run/final" --sample image --sample text -n 10 --seed 1 \
    --out "$run/compare.png" --force

#!/usr/bin/env bash
# Text to 3-D by three methods, three seeds each: how many of 24 random sides of every object are read as the text says,
# and how much objects of different seeds differ. The result is runs/text-to-3d.json, a line a method.
# Stop it at any time; the same line goes on.
#
#   runs/text-to-3d.sh [MODEL] [RUN_FOLDER] [DEVICE]
#   STEPS=1000 TEXT="a small green star" runs/text-to-3d.sh ...      another run is another folder
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-scenes} run=${2:-work/text-to-3d} device=${3:-cpu}
text=${TEXT:-"a large red circle on a white background"}
bin=.venv/bin

mkdir -p "$run"
for method in sds vsd uni-instruct; do
    "$bin/unidiffuser" text-to-3d --model "$model" --text "$text" --method "$method" --steps "${STEPS:-400}" -n 3 \
        --views 24 --device "$device" --out "$run/$method.gif" --force --json > "$run/$method.json"
done
"$bin/python" - "$run" > "$run/all.json" <<'PYTHON'
import json, pathlib, sys

parts = [json.loads(pathlib.Path(sys.argv[1], f"{m}.json").read_text()) for m in ("sds", "vsd", "uni-instruct")]
print(json.dumps(parts, indent=1))
PYTHON
mv "$run/all.json" runs/text-to-3d.json

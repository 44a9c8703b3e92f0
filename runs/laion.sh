#!/usr/bin/env bash
# The paper's three stages (Bao et al. 2023) on data of yours: 256 px, 512 px, 512 px on an aesthetic subset. Every line
# goes on when it is given again. What they take is worked out in docs/scale.md.
#
#   runs/laion.sh WEB HIGH_RESOLUTION AESTHETIC [RUNS]      three declarations or folders, encoded at 256, 512 and 512 px
#   PROCESSES=8 LAUNCH="torchrun --nnodes 8 --nproc-per-node 8 ..." runs/laion.sh ...
set -euo pipefail
cd "$(dirname "$0")/.."
web=$1 high=$2 aesthetic=$3 runs=${4:-work/laion}
launch=${LAUNCH:-"torchrun --nproc-per-node ${PROCESSES:-8}"}
paper=(--size huge --device cuda --sharding fsdp --workers 8 --set training.recompute=true
       --set training.lr=2e-4 --set training.weight_decay=0.03 --set "training.betas=[0.9,0.9]"
       --set training.warmup=5000 --set training.cooldown=0 --set training.ema=0.9999)

$launch -m -- unidiffuser train --data "$web" --run "$runs/256" --batch 11264 --steps 250000 --save-every 2000 "${paper[@]}"
$launch -m -- unidiffuser train --data "$high" --run "$runs/512" --batch 2112 --steps 200000 --save-every 2000 \
    --start "$runs/256/final" "${paper[@]}"
$launch -m -- unidiffuser train --data "$aesthetic" --run "$runs/aesthetic" --batch 2112 --steps 220000 --save-every 2000 \
    --start "$runs/512/final" "${paper[@]}"

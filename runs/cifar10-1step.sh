#!/usr/bin/env bash
# CIFAR-10: what exact and detached weights make of four divergences, all with one teacher, one budget, one extractor.
# Every line goes on when it is given again; the table is RUNS/fid.tsv.
#
#   runs/cifar10-1step.sh DATA PICTURES [RUNS]
#
#   DATA        the training set as any folder that `unidiffuser data check` accepts, with the names of the classes as text
#   PICTURES    the same pictures as PNGs in one folder, for the FID
#   FID         prints the FID of two folders; pytorch-fid in an environment of its own, as it needs torchvision
#
# FID is of p(image): the text is ignored. Guidance and the adversarial term are off, so that only the divergence differs.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 pictures=$2 runs=${3:-work/cifar10-1step}
fid=${FID:-"python -m pytorch_fid --device cuda"}
unidiffuser=.venv/bin/unidiffuser

measure() { # NAME MODEL STEPS: 50,000 pictures of a model against the data
    local out="$runs/samples/$1"
    for first in 0 10000 20000 30000 40000; do
        [ -e "$out/$first/samples.json" ] ||
            "$unidiffuser" sample image --model "$2" --device cuda -n 10000 --seed "$first" --steps "$3" --guidance 0 \
                --no-metadata --force --out "$out/$first"
        mkdir -p "$out/all"
        for file in "$out/$first"/*.png; do ln -f "$file" "$out/all/$first-${file##*/}"; done
    done
    printf '%s\t%s\t%s\n' "$1" "$3" "$($fid "$out/all" "$pictures")" | tee -a "$runs/fid.tsv"
}

"$unidiffuser" train --data "$data" --run "$runs/teacher" --size base --batch 512 --steps 200000 --device cuda --workers 8
measure teacher "$runs/teacher/final" 35
for divergence in reverse-kl forward-kl jeffreys jensen-shannon; do
    for weight in exact detached; do
        [ "$divergence-$weight" = reverse-kl-detached ] && continue # the same: its weight is constant
        name="$divergence-$weight"
        flags=()
        [ "$weight" = detached ] && flags=(--detach-ratio)
        "$unidiffuser" distill "$runs/teacher/final" --data "$data" --run "$runs/$name" --divergence "$divergence" \
            --no-adversarial --guidance 0 --batch 512 --steps 50000 --device cuda --workers 8 "${flags[@]}"
        measure "$name" "$runs/$name/final" 1
    done
done

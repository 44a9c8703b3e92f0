#!/usr/bin/env bash
# MF and LightGCN on two logs without queries, and the table of all models on worlds whose truth is known. Every line
# goes on when it is given again. The environment is that of `make test`.
#
#   runs/recommend.sh LASTFM GOWALLA [RUNS]      folders with train.tsv and test.tsv of `user item`; RUNS: work/recommend
#
# Gowalla is the split of the LightGCN paper (arXiv 2002.02126, table 4: recall@20 0.1824, NDCG@20 0.1547, three layers,
# a thousand epochs of BPR); the second line takes fewer and larger steps against 4,096 items each.
set -euo pipefail
cd "$(dirname "$0")/.."
lastfm=$1 gowalla=$2 runs=${3:-work/recommend}
unidiffuser=.venv/bin/unidiffuser
mkdir -p "$runs"

run() {  # NAME DATA and flags of train
    "$unidiffuser" recommend train --data "$2" --run "$runs/$1" --negatives 0 "${@:3}"
    "$unidiffuser" recommend evaluate --run "$runs/$1" --json > "$runs/$1.json"
}

run lastfm-mf "$lastfm" --model mf --set l2=0.01
run lastfm-lightgcn "$lastfm" --model lightgcn
run gowalla-lightgcn-paper "$gowalla" --model lightgcn --epochs 1000 --set batch=2048 --set lr=0.001
run gowalla-lightgcn-softmax "$gowalla" --model lightgcn --epochs 100 --set batch=8192 --set lr=0.005 \
    --set objective=softmax --set sample=4096
.venv/bin/python benchmarks/recommend_table.py --out "$runs/table" --worlds sparse dense --seeds 5

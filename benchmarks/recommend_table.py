"""All models of search and recommendation on worlds whose truth is known: the honest table.

    python benchmarks/recommend_table.py --out FOLDER [--worlds sparse dense] [--seeds 5] [--rows mf lightgcn ...]

Every cell is a mean over seeds, each of them another world, split and start, with the 95 % interval of Student's t.
A row is trained as its recipe says, whatever the world; the processor seconds are told. FOLDER keeps one JSON file a
world, seed and row, so that the same line goes on where it stopped and the table is printed from what is there. With
`--part valid` the same is measured on the validation part, which is what settings may be chosen by.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from unidiffuser.recommend.evaluation import evaluate
from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.recommender import Recommender
from unidiffuser.recommend.splits import Protocol, split
from unidiffuser.recommend.store import Saved, write_model
from unidiffuser.recommend.tables import read_table
from unidiffuser.recommend.training import Plan, fit_model
from unidiffuser.recommend.truth import Truth, read_truth, write_world
from unidiffuser.recommend.world import WorldConfig

WORLDS = {
    "sparse": {"users": 3000, "items": 1500, "events": 8},
    "dense": {"users": 6000, "items": 600, "events": 20},
    "tiny": {"users": 300, "items": 100, "events": 8},
}
"""Name -> size; `tiny` is there to try the script."""
Row = tuple[str, dict[str, Any], dict[str, Any]]
ROWS: dict[str, Row] = {
    "popularity": ("popularity", {}, {}),
    "MF": ("mf", {}, {}),
    "LightGCN": ("lightgcn", {}, {}),
    "LightGCN, query": ("lightgcn-query", {}, {}),
    "UDITSR": ("uditsr", {}, {}),
    "UDITSR, offsets every step": ("uditsr", {"refresh": "step"}, {}),
    "UDITSR, MLP head": ("uditsr-mlp", {}, {}),
    "UDITSR, published": ("uditsr-published", {}, {}),
    "UDITSR, no generator": ("uditsr", {"generator": False}, {}),
    "UDITSR, no supervision": ("uditsr", {"supervision": 0.0}, {}),
    "UDITSR, no translation": ("uditsr", {"translation": False}, {}),
    "UDITSR, no contrast": ("uditsr", {"contrast": 0.0}, {}),
    "UDITSR, own query left in": ("uditsr", {"leave_one_out": False}, {}),
    "masked": ("masked", {}, {}),
    "diffusion": ("diffusion", {}, {}),
    "diffusion, 16 draws": ("diffusion", {}, {"samples": 16}),
    "diffusion, guidance 0.5": ("diffusion", {}, {"guidance": 0.5}),
}
"""Row -> (recipe, changes of it, how it is asked)."""
COLUMNS = {
    "rec full": ("recommendation", "full", "hit@5"),
    "rec of 100": ("recommendation", "sampled", "hit@5"),
    "search full": ("search", "full", "hit@5"),
    "search of 100": ("search", "sampled", "hit@5"),
    "words": ("words", "", "hit@5"),
    "demand": ("demand", "", "accuracy"),
}


def measure(name: str, data: Interactions, truth: Truth, seed: int, folder: Path, part: str) -> dict[str, Any]:
    """One row of one world and seed."""
    if name == "oracle":
        scorer: Any = truth.oracle
        seconds = 0.0
    else:
        recipe, changes, asked = ROWS[name]
        begin = time.process_time()
        shutil.rmtree(folder, ignore_errors=True)
        model = fit_model(data, Plan.of(recipe, seed=seed, **changes), folder / "training")
        seconds = time.process_time() - begin
        write_model(folder / "final", Saved(model=model, names=data.names, training={}))
        scorer = Recommender.load(folder, **asked).model
        shutil.rmtree(folder)
    report = evaluate(scorer, data, part) | {"demand": truth.demand_accuracy(scorer, data.part(part))}
    return report | {"seconds": seconds}


def cell(values: list[float]) -> str:
    """Mean and half the 95 % interval."""
    if len(values) < 2:
        return f"{statistics.mean(values):.3f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(out: Path, world: str, part: str) -> str:
    """The table of what is there."""
    lines = [f"| {world} | seeds | {' | '.join(COLUMNS)} | seconds |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in ("oracle", *ROWS):
        files = sorted(out.glob(f"{part}-{world}-*-{slug(name)}.json"))
        if not files:
            continue
        found = [json.loads(file.read_text()) for file in files]
        cells = [cell([(r[a][b] if b else r[a])[metric]["mean"] for r in found]) for a, b, metric in COLUMNS.values()]
        seconds = statistics.mean(r["seconds"] for r in found)
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def slug(name: str) -> str:
    """A row's name as part of a file's name."""
    return name.lower().replace(",", "").replace(" ", "-").replace(".", "")


def main() -> int:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the figures are kept")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=["sparse", "dense"])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for world in args.worlds:
        for seed in range(args.seeds):
            files = {n: args.out / f"{args.part}-{world}-{seed}-{slug(n)}.json" for n in ("oracle", *args.rows)}
            missing = [name for name, file in files.items() if not file.exists()]
            if not missing:
                continue
            place = args.out / f"world-{world}-{seed}"
            data = split(read_table(write_world(WorldConfig(**WORLDS[world], seed=seed), place)), Protocol(seed=seed))
            truth = read_truth(place, data.names)
            assert truth is not None
            for name in missing:
                report = measure(name, data, truth, seed, args.out / "training", args.part)
                files[name].write_text(json.dumps(report, indent=1) + "\n")
                print(f"{world} {seed} {name}: {report['seconds']:.0f} s", file=sys.stderr, flush=True)
        print(table(args.out, world, args.part) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

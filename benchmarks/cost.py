"""What training costs against size and batch: samples a second, operations a second and memory, measured and plotted.

    python benchmarks/cost.py [--sizes 192x8x6 ...] [--batches 8 16 32 64] [--rounds 3] [--json FILE] [--plot FILE.png]

A size is width x depth x heads; the step is that of `training.py`: 4 x 32 x 32 latents in patches of 2 and a label,
bfloat16 products, forward, backward, clipping, AdamW and the average, on the CPU. Each measurement is a process of its
own with the memory settings of `unidiffuser train`; sizes and batches take turns, and the median over the rounds
stands. Operations are counted, not estimated: those of the products of one forward and one backward pass.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, ABOVE, BELOW, RIGHT = 460, 340, 64, 34, 44, 24
COLOURS = ("#1557b0", "#d98c00", "#2c7a3f", "#a8327a", "#666666", "#b03030")
SCALE = 2
"""Pixels of the picture a unit of the layout."""

Points = Sequence[tuple[float, float]]


def turn(size: str, batch: int, steps: int) -> dict[str, float]:
    """One measurement, in this process."""
    from training import ours

    dim, depth, heads = (int(n) for n in size.split("x"))
    parameters, operations = counted(dim, depth, heads)
    seconds = ours(dim, depth, heads, batch, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"parameters": parameters, "operations": operations * batch, "seconds": seconds, "peak_bytes": peak}


def counted(dim: int, depth: int, heads: int) -> tuple[int, float]:
    """Parameters, and the operations of a forward and a backward pass of one sample."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from training import CLASSES, SHAPE

    from unidiffuser.networks.uvit import UViT, UViTConfig

    with torch.device("meta"):
        config = UViTConfig(streams={"image": SHAPE}, dim=dim, depth=depth, heads=heads, patch=2, labels=CLASSES)
        network = UViT(config)
        x, t = {"image": torch.empty(1, *SHAPE)}, {"image": torch.empty(1)}
        label = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(x, t, label)["image"].sum().backward()
    return sum(p.numel() for p in network.parameters()), float(counter.get_total_flops())


def measured(args: argparse.Namespace) -> list[dict[str, float | str]]:
    """A row for each size and batch, medians over the rounds."""
    from unidiffuser.cli.train import MEMORY

    environment = {**os.environ, **MEMORY, "OMP_NUM_THREADS": str(args.threads)}
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for size in args.sizes:
            for batch in args.batches:
                command = [
                    sys.executable,
                    __file__,
                    "--turn",
                    size,
                    "--batches",
                    str(batch),
                    "--steps",
                    str(args.steps),
                ]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{size} with a batch of {batch} failed: {done.stderr.strip().splitlines()[-1:]}")
                found.setdefault((size, batch), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows: list[dict[str, float | str]] = []
    for (size, batch), turns in found.items():
        seconds = statistics.median(one["seconds"] for one in turns)
        rows.append(
            {
                "size": size,
                "batch": batch,
                "parameters": turns[0]["parameters"],
                "samples_per_second": batch / seconds,
                "operations_per_second": turns[0]["operations"] / seconds,
                "peak_bytes": max(one["peak_bytes"] for one in turns),
            }
        )
    return rows


def picture(rows: Sequence[Mapping[str, float | str]]) -> Image.Image:
    """Three charts with logarithmic axes: speed against batch, use of the machine against batch, cost against size."""
    by_size: dict[str, list[Mapping[str, float | str]]] = {}
    for row in rows:
        by_size.setdefault(f"{float(row['parameters']) / 1e6:.1f} M", []).append(row)
    lines = {
        what: {
            size: [(float(row["batch"]), scale * float(row[what])) for row in each] for size, each in by_size.items()
        }
        for what, scale in (("samples_per_second", 1.0), ("operations_per_second", 1e-9))
    }
    best = [max(each, key=lambda row: float(row["samples_per_second"])) for each in by_size.values()]
    cost = [(float(row["parameters"]) / 1e6, 1000 / float(row["samples_per_second"])) for row in best]
    sheet = Image.new("RGB", (3 * WIDTH * SCALE, HEIGHT * SCALE), "white")
    chart(sheet, 0, "samples a second against batch", lines["samples_per_second"])
    chart(sheet, 1, "GFLOP a second against batch", lines["operations_per_second"])
    chart(sheet, 2, "seconds for 1000 samples against millions of parameters", {"at the best batch": sorted(cost)})
    return sheet.quantize(64)


def chart(sheet: Image.Image, place: int, title: str, lines: Mapping[str, Points]) -> None:
    """Draw one chart: a line a name, dots where it was measured."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11 * SCALE)
    xs, ys = ([point[axis] for points in lines.values() for point in points] for axis in (0, 1))
    left, right = place * WIDTH + LEFT, (place + 1) * WIDTH - RIGHT
    across = {x: _between(x, xs, left, right) * SCALE for x in xs}
    up = {y: _between(y, ys, HEIGHT - BELOW, ABOVE) * SCALE for y in ys}
    draw.text((left * SCALE, 8 * SCALE), title, "black", font)
    draw.rectangle((left * SCALE, ABOVE * SCALE, right * SCALE, (HEIGHT - BELOW) * SCALE), outline="#cccccc")
    for x in sorted(set(xs)):
        draw.text((across[x], (HEIGHT - BELOW + 6) * SCALE), f"{x:.3g}", "#444444", font, anchor="ma")
    for y in {min(ys), max(ys), min(ys, key=lambda y: abs(math.log(y * y / (min(ys) * max(ys)))))}:
        draw.text(((left - 6) * SCALE, up[y]), f"{y:.3g}", "#444444", font, anchor="rm")
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        draw.line([(across[x], up[y]) for x, y in points], fill=colour, width=2 * SCALE)
        for x, y in points:
            draw.ellipse([v + d * 3 * SCALE for d in (-1, 1) for v in (across[x], up[y])], fill=colour)
        draw.text(((left + 8) * SCALE, (ABOVE + 6 + 14 * k) * SCALE), name, colour, font)


def _between(value: float, values: Sequence[float], low: float, high: float) -> float:
    """Where a value lies on a logarithmic axis that runs from low to high, with a rim."""
    first, last = math.log(min(values)), math.log(max(values))
    share = 0.5 if first == last else (math.log(value) - first) / (last - first)
    return low + (0.06 + 0.88 * share) * (high - low)


def main() -> int:
    """Print a table, one line a size and batch, and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["192x8x6", "256x12x8", "512x12x8"], help="width x depth x heads")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64], help="samples a step")
    parser.add_argument("--steps", type=int, default=10, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--plot", type=Path, default=Path("cost.png"), help="where the plot goes (default: cost.png)")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 6:
        parser.error(f"--steps must be 6 or more, not {args.steps}: the first two and the last are not timed")
    if args.turn:
        print(json.dumps(turn(args.turn, args.batches[0], args.steps)))
        return 0
    rows = measured(args)
    print(f"{'network':>10} {'batch':>5} {'samples/s':>10} {'GFLOP/s':>8} {'peak':>9}")
    for row in rows:
        print(
            f"{row['size']:>10} {row['batch']:>5} {row['samples_per_second']:>10.1f} "
            f"{float(row['operations_per_second']) / 1e9:>8.1f} {float(row['peak_bytes']) / 2**20:>6.0f} MB"
        )
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1) + "\n")
    picture(rows).save(args.plot, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

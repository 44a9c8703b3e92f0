"""Our training step beside that of baofff/U-ViT: same network size, same batch, same precision, one run.

    python benchmarks/training.py --uvit CHECKOUT [--sizes 192x8x6 ...] [--batch 32] [--rounds 7] [--json FILE]

Both networks are of one width, depth and number of heads, take 4 x 32 x 32 latents in patches of 2 and a label, and
compute in bfloat16 autocast. A step is a batch, noise, forward, backward, clipping, AdamW and the average, each as its
own trainer does it: theirs through the checkout's own network (`libs.uvit`) and averaging loop (written from what its
train_ldm.py calls for: separate norm, AdamW as torch gives it by default, an average a parameter at a time); ours
through the loop of `optimise`. Each runs in a process of its own, as a person would start it, ours with the memory
settings of `unidiffuser train`; the two take turns, and the ratio is of samples a second, with its spread over the
turns. `--plain` leaves our memory settings out, `--compile` trains ours with `training.compile=true`;
`--clock cpu` counts computed seconds, for a machine that others use as well. Nothing of the checkout is copied.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

SHAPE = (4, 32, 32)
CLASSES = 10


def ours(dim: int, depth: int, heads: int, batch: int, steps: int, compiled: bool = False) -> float:
    """Seconds a step of our trainer, checkpoints and logs apart."""
    import tempfile

    import torch

    from unidiffuser.losses import Objective
    from unidiffuser.networks.uvit import UViT, UViTConfig
    from unidiffuser.process import RectifiedFlow
    from unidiffuser.stages import fit_averages
    from unidiffuser.training.batches import Batch, Batches
    from unidiffuser.training.preset import OptimiserSettings

    class Ready(Batches[Batch]):
        """Batches that are there already, as theirs are."""

        def following(self, end: int):  # type: ignore[no-untyped-def]
            g = torch.Generator().manual_seed(0)
            x0 = {"image": torch.randn(batch, *SHAPE, generator=g)}
            there = {"image": torch.ones(batch, dtype=torch.bool)}
            label = torch.randint(CLASSES, (batch,), generator=g)
            return lambda number: Batch(x0=x0, present=there, label=label)

    torch.manual_seed(0)
    network = UViT(
        UViTConfig(streams={"image": SHAPE}, dim=dim, depth=depth, heads=heads, patch=2, norm="pre", labels=CLASSES)
    )
    objective = Objective(process=RectifiedFlow(), prediction="eps", space="eps")
    settings = OptimiserSettings(steps=steps, batch=batch, log_every=1, save_every=10**6, compile=compiled)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        follow = lambda step, figures: times.append(clock())  # noqa: E731
        pairs = [{}] * batch  # never read
        fit_averages(network, Ready(pairs, batch, 0, dict), objective, settings, Path(folder), progress=follow)  # type: ignore
    return _median_step(times[:-1])


def theirs(checkout: Path, dim: int, depth: int, heads: int, batch: int, steps: int) -> float:
    """Seconds a step of U-ViT's own."""
    sys.path.insert(0, str(checkout))
    import torch
    from libs.uvit import UViT  # type: ignore[import-not-found]

    torch.manual_seed(0)
    network = UViT(
        img_size=SHAPE[1],
        patch_size=2,
        in_chans=SHAPE[0],
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        qkv_bias=False,
        mlp_time_embed=False,
        num_classes=CLASSES,
        conv=False,
    )
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.03, betas=(0.99, 0.999))
    x0, y = torch.randn(batch, *SHAPE), torch.randint(CLASSES, (batch,))
    times = [clock()]
    for _ in range(steps):
        optimiser.zero_grad()
        t = torch.rand(batch)
        noise = torch.randn_like(x0)
        a, s = (1 - t)[:, None, None, None], t[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            out = network(a * x0 + s * noise, t * 999, y)
        loss = (out.float() - noise).square().flatten(1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, p in network.named_parameters():
                average[name].mul_(0.9999).add_(p, alpha=1 - 0.9999)
        loss.item()
        times.append(clock())
    return _median_step(times)


def clock() -> float:
    """Seconds: of the wall, or those this process computed, which other programs on the machine do not lengthen."""
    return time.process_time() if os.environ.get("CLOCK") == "cpu" else time.perf_counter()


def _median_step(times: list[float]) -> float:
    """The median time between two steps, the first two apart."""
    return statistics.median(b - a for a, b in pairwise(times[2:]))


def main() -> int:
    """Print a table, one line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uvit", type=Path, required=True, help="a checkout of github.com/baofff/U-ViT")
    parser.add_argument("--sizes", nargs="+", default=["192x8x6", "256x12x8", "512x12x8"], help="width x depth x heads")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that is not idle")
    parser.add_argument("--plain", action="store_true", help="ours without its memory settings")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.uvit / "libs" / "uvit.py").is_file():
        parser.error(f"{args.uvit} is no checkout of U-ViT: it has no libs/uvit.py")
    if args.steps < 6:
        parser.error(f"--steps must be 6 or more, not {args.steps}: the first two and the last are not timed")
    if args.turn:
        return turn(args)
    rows = []
    print(f"{'network':>10} {'batch':>5} {'ours':>12} {'theirs':>12}   ratio (least to most over {args.rounds} turns)")
    for size in args.sizes:
        speeds = [{who: args.batch / one(args, who, size) for who in ("ours", "theirs")} for _ in range(args.rounds)]
        ratios = [speed["ours"] / speed["theirs"] for speed in speeds]
        row = {"size": size, "batch": args.batch, "ratio": statistics.median(ratios), "ratios": ratios}
        row |= {who: statistics.median(speed[who] for speed in speeds) for who in ("ours", "theirs")}
        rows.append(row)
        print(
            f"{size:>10} {args.batch:>5} {row['ours']:>8.1f}/s   {row['theirs']:>8.1f}/s   "
            f"{row['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1) + "\n")
    return 0


def one(args: argparse.Namespace, who: str, size: str) -> float:
    """Seconds a step of one turn, in a process of its own."""
    from unidiffuser.cli.train import MEMORY

    environment = {name: value for name, value in os.environ.items() if name not in MEMORY}
    environment |= {"OMP_NUM_THREADS": str(args.threads), "CLOCK": args.clock}
    if who == "ours" and not args.plain:
        environment |= MEMORY
    command = [sys.executable, __file__, "--uvit", str(args.uvit), "--turn", who, "--sizes", size]
    command += ["--batch", str(args.batch), "--steps", str(args.steps), *(["--compile"] if args.compile else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the turn of {who} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])


def turn(args: argparse.Namespace) -> int:
    """One turn: print the seconds of a step."""
    dim, depth, heads = (int(n) for n in args.sizes[0].split("x"))
    sizes = (dim, depth, heads, args.batch, args.steps)
    print(ours(*sizes, args.compile) if args.turn == "ours" else theirs(args.uvit, *sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

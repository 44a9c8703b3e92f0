"""UDITSR's epoch beside the published formulation, how both grow, top-k of many users, and the memory of tables.

    python benchmarks/recommend.py [--only epochs | top | memory] [--sizes 5000 10000 20000 40000] [--rows uditsr]
                                   [--json FILE]

The three columns are one model with the published settings (100 numbers a vector, batches of 256, the MLP head), on one
world, with the same batches and the same AdamW:

    published     demands and messages edge by edge, all of them at every step (`edgewise.py`)
    exact         the same numbers by node offsets and the factorised generator, still all of them at every step
    ours          the same, the recommendations' part of the offsets made once an epoch

An epoch is the time of its median step, over `--steps` of them, times its steps, plus what is made once. The ratios are
of one run on one machine; the loss of the first step is compared as well, so that it is the same work. Top-k is the
call that answers users, `Recommender.top`, on tables of random numbers. Memory is counted, and with `--only memory`
what the process holds at most in three steps of LightGCN is measured beside the count.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from edgewise import Edgewise
from torch import Tensor

from unidiffuser.recommend.batches import Batches
from unidiffuser.recommend.events import Events, Index, Names, Sizes
from unidiffuser.recommend.models import Batch, configure, find
from unidiffuser.recommend.models.uditsr import UDITSR, UDITSRConfig
from unidiffuser.recommend.recommender import Recommender
from unidiffuser.recommend.store import Saved
from unidiffuser.recommend.training import Plan
from unidiffuser.recommend.training import train as carry_out
from unidiffuser.recommend.truth import write_world
from unidiffuser.recommend.world import World, WorldConfig

BATCH, DIM = 256, 100
EVENTS_EACH = 8


def world_events(count: int) -> tuple[Events, Sizes]:
    """So many events of a world of the usual temper."""
    config = WorldConfig(users=count // EVENTS_EACH, items=max(200, count // 15), events=EVENTS_EACH)
    rows = list(World.make(config).draw())
    words = torch.tensor([[w + 1 for w in words] + [0] * (3 - len(words)) for *_, words in rows])
    user, item = (torch.tensor([row[k] for row in rows]) for k in (0, 1))
    sizes = Sizes(users=config.users, items=config.items, words=config.topics * config.words + 1)
    return Events(user, item, words), sizes


def median_step(model: torch.nn.Module, loss_of: Callable[[int], Tensor], steps: int) -> tuple[float, float]:
    """(seconds a step, the first loss)."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    times, first = [], 0.0
    for step in range(steps):
        begin = time.perf_counter()
        loss = loss_of(step)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - begin)
        first = first if step else float(loss.detach())
    return statistics.median(times), first


def epochs(count: int, steps: int) -> dict[str, Any]:
    """Seconds an epoch of the three at one size."""
    events, sizes = world_events(count)
    row: dict[str, Any] = {"events": count}
    losses = []
    for name, refresh in (("published", "step"), ("exact", "step"), ("ours", "epoch")):
        torch.manual_seed(0)
        model = UDITSR(replace(UDITSRConfig.reference(), dim=DIM, refresh=refresh), sizes, events)
        batches = Batches(model.train_events, sizes.items, BATCH, seed=0)
        once, repeats = 0.0, steps if name != "ours" else 5 * steps
        if name == "published":
            plain = Edgewise(model)
            second, loss = median_step(plain, lambda k, plain=plain, b=batches: plain.loss(b(k)[0]), steps)
        else:
            if refresh == "epoch":
                begin = time.perf_counter()
                model.refresh(0)
                once = time.perf_counter() - begin
            second, loss = median_step(model, lambda k, model=model, b=batches: model.loss(b(k)[0], 0)[0], repeats)
        row[name] = second * batches.per_epoch + once
        losses.append(loss)
    assert max(losses) - min(losses) < 1e-4, f"the three do not compute the same: {losses}"
    return row | {"exact ratio": row["published"] / row["exact"], "our ratio": row["published"] / row["ours"]}


LISTS = (20, 75, 150, 300, 500, 1000)
WORLDS = ((1000, 1500), (4000, 10_000))
"""Users and items of the worlds that a shortlist is measured on."""
TOP = {
    "popularity": ("popularity", {}, ""),
    "mf": ("mf", {}, ""),
    "lightgcn": ("lightgcn", {}, ""),
    "lightgcn-query": ("lightgcn-query", {}, "ws"),
    "masked": ("masked", {}, "ws"),
    "diffusion, one call": ("diffusion", {}, "ws"),
    "uditsr without generator": ("uditsr", {"generator": False}, "ws"),
    "uditsr, dot": ("uditsr", {}, "ws"),
    "uditsr, dot, every candidate": ("uditsr", {"shortlist": 0}, "w-"),
    "uditsr, MLP, every candidate": ("uditsr", {"head": "mlp"}, "ws-"),
}
"""Row -> kind, settings, and what is asked: w without, s with a query; "-": no product, so few users are enough."""


def top_speeds(items: int, rows: str = "", users: int = 2000, dim: int = 64, k: int = 10) -> dict[str, float]:
    """Users a second whose best k of all items, without what they had, are found; random weights, as fast as others."""
    g = torch.Generator().manual_seed(0)
    had, words = 20 * users, 1001
    train = Events(
        torch.arange(users).repeat_interleave(20),
        torch.randint(items, (had,), generator=g),
        torch.randint(1, words, (had, 3), generator=g) * (torch.rand(had, 1, generator=g) < 0.5),
    )
    sizes = Sizes(users=users, items=items, words=words)
    names = Names(**{x: Index(map(str, range(getattr(sizes, x)))) for x in ("users", "items", "words")})
    found = {}
    for name, (kind, settings, asked) in TOP.items():
        if not name.startswith(rows):
            continue
        settings = settings if kind == "popularity" else {"dim": dim, **settings}
        torch.manual_seed(0)
        model = find(kind)(configure(kind, settings), sizes, train)
        model.requires_grad_(False).eval().ready()
        recommender = Recommender(Saved(model=model, names=names, training={}))
        for query in [x for x in asked if x in "ws"] or [""]:
            step = 4 if "-" in asked else 250
            times = []
            for chunk in torch.arange(min(users, 4 * step)).split(step):
                typed = torch.randint(1, words, (len(chunk), 2), generator=g) * (query == "s")
                begin = time.perf_counter()
                recommender.top(chunk, typed, k)
                times.append(time.perf_counter() - begin)
            what = {"w": ", recommendations", "s": ", searches", "": ""}[query]
            found[name + what] = step / statistics.median(times)
    return found


def shortlist_quality(users: int, items: int, epochs: int = 15, k: int = 10) -> dict[int, float]:
    """Length of UDITSR's shortlist -> the share of the exact best k in it, after a short training on a world."""
    config = WorldConfig(users=users, items=items, events=EVENTS_EACH)
    with tempfile.TemporaryDirectory() as folder:
        write_world(config, Path(folder) / "world")
        run = Path(folder) / "run"
        carry_out(Path(folder) / "world", Plan.of("uditsr", dim=32, epochs=epochs), run)
        rows = torch.arange(200)
        asked = torch.zeros(len(rows), 1, dtype=torch.int64)
        best, _ = Recommender.load(run, shortlist=0).top(rows, asked, k)
        found = {}
        for count in LISTS:
            near, _ = Recommender.load(run, shortlist=count).top(rows, asked, k)
            found[count] = float((near[:, :, None] == best[:, None, :]).any(1).double().mean())
    return found


def growth(rows: list[dict[str, Any]], name: str) -> float:
    """The power of the number of events that an epoch grows with, from the smallest to the largest size."""
    first, last = rows[0], rows[-1]
    ratio = torch.tensor([last[name] / first[name], last["events"] / first["events"]]).log()
    return float(ratio[0] / ratio[1])


def memory(users: int, items: int, words: int, dim: int, events: int, layers: int) -> dict[str, float]:
    """Gigabytes, counted.

    Five tables of every vector in training: weights, average, two moments, gradients. LightGCN adds a table of users
    and items for each layer and one for their mean, as if all were held at once, and its links, by rows and by columns:
    a number and two of eight bytes an event. When it is asked: the weights and what is ready.
    """
    table, nodes = (users + items + words) * dim * 4 / 1e9, (users + items) * dim * 4 / 1e9
    found = {"training": 5 * table, "propagation": (layers + 1) * nodes, "links": 2 * 12 * events / 1e9}
    found["training of LightGCN"] = sum(found.values())
    return found | {"asked": 2 * table, "a list of 1,000 users": 1000 * items * 4 / 1e9}


def measured_memory(users: int, items: int, dim: int, events: int, layers: int) -> float:
    """Gigabytes that three steps of LightGCN with its average add at most to what this process held at any time."""
    g = torch.Generator().manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    who, what = (torch.randint(n, (events,), generator=g) for n in (users, items))
    seen = Events(who, what, torch.zeros(events, 1, dtype=torch.int64))
    config = configure("lightgcn", {"dim": dim, "layers": layers})
    model = find("lightgcn")(config, Sizes(users=users, items=items, words=1), seen)
    average = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(3):
        rows = torch.randint(events, (2048,), generator=g)
        batch = Batch(seen[rows], torch.randint(items, (2048,), generator=g), rows, g)
        model.loss(batch, 0)[0].backward()
        optimiser.step()
        for mean, p in zip(average, model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.05)
        optimiser.zero_grad()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def tell_memory(measure: bool) -> dict[str, Any]:
    """Print the count for a million users and items, and the measurement of a quarter of it beside its own count."""
    names = ("users", "items", "words", "dim", "events", "layers")
    whole = dict(zip(names, (1_000_000, 1_000_000, 100_000, 64, 8_000_000, 3), strict=True))
    report: dict[str, Any] = {"counted": memory(**whole)}
    print("a million users and items, 8 million events, 64 numbers each, 3 layers, in gigabytes (counted): ", end="")
    print(", ".join(f"{what} {size:.1f}" for what, size in report["counted"].items()))
    if measure:
        part = {"users": 250_000, "items": 250_000, "dim": 64, "events": 2_000_000, "layers": 3}
        report["quarter, counted"] = counted = memory(words=1, **part)["training of LightGCN"]
        report["quarter, measured"] = found = measured_memory(**part)
        print(f"a quarter of it, without words: {counted:.2f} counted, {found:.2f} measured at most in three steps")
    return report


def tell_epochs(sizes: list[int], steps: int) -> dict[str, Any]:
    """Print seconds an epoch and how they grow."""
    print(f"seconds an epoch, {torch.get_num_threads()} threads")
    print(f"{'events':>8} {'published':>10} {'exact':>10} {'ours':>10} {'exact is':>10} {'ours is':>10}")
    rows = []
    for count in sizes:
        row = epochs(count, steps)
        rows.append(row)
        figures = f"{row['published']:10.1f} {row['exact']:10.1f} {row['ours']:10.2f}"
        print(f"{count:>8} {figures} {row['exact ratio']:>9.1f}x {row['our ratio']:>9.1f}x", flush=True)
    report: dict[str, Any] = {"epochs": rows}
    if len(rows) > 1:
        report["growth"] = {name: growth(rows, name) for name in ("published", "exact", "ours")}
        print("an epoch grows as events to the power of: ", end="")
        print(", ".join(f"{name} {power:.2f}" for name, power in report["growth"].items()))
    return report


def tell_top(items: int, rows: str) -> dict[str, Any]:
    """Print users a second, and what a shortlist finds."""
    report: dict[str, Any] = {"users a second": top_speeds(items, rows)}
    print(f"top 10 of {items} items, users a second, {torch.get_num_threads()} threads")
    for name, speed in report["users a second"].items():
        print(f"{speed:>10.0f}  {name}", flush=True)
    report["shortlist"] = {}
    for users, count in WORLDS:
        report["shortlist"][count] = found = shortlist_quality(users, count)
        shares = ", ".join(f"{share:.3f} in {length}" for length, share in found.items())
        print(f"share of the exact best 10 of {count} items that is in UDITSR's shortlist: {shares}", flush=True)
    return report


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[5000, 10_000, 20_000, 40_000], help="events")
    parser.add_argument("--steps", type=int, default=3, help="steps timed of the slow ones")
    parser.add_argument("--items", type=int, default=40_000, help="items of the top-k")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--rows", default="", help="only rows of the top-k whose name begins so")
    parser.add_argument("--only", choices=("epochs", "top", "memory"), help="one part alone")
    args = parser.parse_args()
    if args.steps < 1 or min(args.sizes) < 2000 or args.items < 1000:
        parser.error("--steps is 1 or more, --sizes 2000 or more each, --items 1000 or more")
    report: dict[str, Any] = {}
    if args.only in (None, "epochs"):
        report |= tell_epochs(args.sizes, args.steps)
    if args.only in (None, "top"):
        report |= tell_top(args.items, args.rows)
    report["gigabytes"] = tell_memory(args.only == "memory")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

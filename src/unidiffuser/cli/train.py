"""The verbs train and preview: from flags to a preset, a run, and what is said of it."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal

if TYPE_CHECKING:
    from unidiffuser.train import Progress
    from unidiffuser.training.preset import Adapting, Preset

MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""How glibc keeps the memory of activations from one step to the next, in large pages; see docs/training.md."""


def train(args: argparse.Namespace, terminal: Terminal) -> int:
    """Train a model on a folder of data or by a preset, going on where an earlier run in the same folder stopped."""
    from unidiffuser.train import finished
    from unidiffuser.train import train as carry_out
    from unidiffuser.training.preset import describe

    first = os.environ.get("RANK", "0") == "0"
    preset = preset_of(args)
    if args.print_config:
        sys.stdout.write(json.dumps(describe(preset), indent=1) + "\n")
        return 0
    if args.dry_run:
        return dry_run(args, preset, terminal)
    if not args.run:
        raise ValueError("a run needs a folder for its checkpoints and its model; give one with --run")
    run = Path(args.run)
    done = finished(preset, run) is not None
    if not done and first:
        terminal.say("\n".join(summary(preset, args.size if args.data else "")))
    with bar(terminal, first) as progress:
        carry_out(preset, run, device=args.device, progress=progress)
    if first:
        if done:
            terminal.say(f"{run} is done: {preset.training.steps} steps; give more --steps to go on")
        terminal.answer(
            {"model": str(run / "final"), "steps": preset.training.steps, "done": done}, [str(run / "final")]
        )
    return 0


def preview(args: argparse.Namespace, terminal: Terminal) -> int:
    """Sample every distribution of a run in progress, from its newest checkpoint."""
    from unidiffuser.training.previews import make

    if not 1 <= args.n <= 64:
        raise ValueError(f"-n must be from 1 to 64, not {args.n}")
    place = str(make(Path(args.run), n=args.n))
    terminal.answer({"previews": place}, [place])
    return 0


def preset_of(args: argparse.Namespace) -> "Preset":
    """The preset that the flags ask for.

    Raises:
        ValueError: both or neither of a name and data, or a value that makes no sense.
    """
    from unidiffuser.training.overrides import changed

    if bool(args.preset) == bool(args.data):
        given = "both are" if args.preset else "neither is"
        raise ValueError(f"train takes the name of a preset or --data FOLDER, and {given} given")
    preset = preset_of_data(args) if args.data else named_preset(args)
    free = {"workers": args.workers, "preview_every": args.preview_every, "sharding": args.sharding}
    preset = replace(preset, **{name: x for name, x in free.items() if x is not None})
    if args.tensorboard:
        preset = replace(preset, tensorboard=True)
    return changed(preset, args.set)


def named_preset(args: argparse.Namespace) -> "Preset":
    """A preset by its name, with the flags that it takes."""
    from unidiffuser.presets import PRESETS

    if args.preset not in PRESETS:
        known = f"there are {', '.join(PRESETS)}{flags.guess(args.preset, PRESETS)}"
        raise ValueError(f"there is no preset {args.preset!r}; {known}")
    preset = PRESETS[args.preset]()
    if args.size is not None:
        raise ValueError(f"the preset {args.preset} has a size of its own; --size goes with --data")
    asked = {name: getattr(args, name) for name in ("steps", "batch", "save_every", "seed")}
    training = replace(preset.training, **{n: x for n, x in asked.items() if x is not None})
    return replace(
        preset,
        name=args.name or preset.name,
        start=args.start or preset.start,
        adapter=adapting(args) or preset.adapter,
        training=training,
    )


def adapting(args: argparse.Namespace) -> "Adapting | None":
    """The low-rank additions that the flags ask for."""
    from unidiffuser.training.preset import Adapting

    return None if args.lora_rank is None else Adapting(rank=args.lora_rank)


def preset_of_data(args: argparse.Namespace) -> "Preset":
    """The preset that is derived from data and the dial."""
    from unidiffuser.datasets import open_data
    from unidiffuser.training.derive import preset_for
    from unidiffuser.training.sizes import size_of

    data = open_data(args.data, seed=args.seed or 0)
    preset = preset_for(
        data.pairs,
        data.kinds,
        data.labels,
        data.digest,
        size_of(args.size or "small"),
        name=args.name or Path(args.data).resolve().name,
        batch=args.batch,
        steps=args.steps,
        save_every=args.save_every,
        seed=args.seed or 0,
        start=args.start or "",
        adapter=adapting(args),
        encoders=data.codecs,
    )
    return replace(preset, values=data.values)


def summary(preset: "Preset", size: str | None) -> list[str]:
    """What was derived, for a person."""
    settings, network = preset.training, dict(preset.network)
    shape = ", ".join(f"{name} {network[name]}" for name in ("dim", "depth", "heads", "patch") if name in network)
    codecs = [f"{m}: {c['kind']}{' (autoencoder)' if c.get('autoencoder') else ''}" for m, c in preset.codecs.items()]
    averages = ", ".join(f"{decay:g}" for decay in settings.more_ema)
    return [
        f"data      {len(preset.pairs)} pairs; {', '.join(codecs)}",
        f"network   {shape}{f' (size {size})' if size else ''}",
        f"training  {settings.steps} steps of {settings.batch}, rate {settings.lr:g}, warm-up {settings.warmup}, "
        f"checkpoint every {settings.save_every}, seed {settings.seed}",
        f"averages  {settings.ema:g} becomes the model{f'; beside it {averages}' if averages else ''}",
        "          --print-config shows every setting, --set NAME=VALUE changes one",
    ]


def dry_run(args: argparse.Namespace, preset: "Preset", terminal: Terminal) -> int:
    """Say what the run would take."""
    from dataclasses import asdict

    from unidiffuser.training.codecs import shapes_of
    from unidiffuser.training.estimate import estimate

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found = estimate(preset, shapes_of(preset), processes=processes, device=args.device)
    terminal.say("\n".join(summary(preset, args.size if args.data else "")))
    terminal.answer(asdict(found), found.lines(preset))
    return 0


@contextmanager
def bar(terminal: Terminal, first: bool) -> Iterator["Progress | None"]:
    """A bar with speed and remaining time for a person; a line every tenth of a stage for a log."""
    from tqdm import tqdm

    if not first or terminal.quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines(terminal)
        return
    with tqdm(unit="step", leave=False) as shown:
        stage = [""]

        def show(name: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
            if stage[0] != name:
                stage[0] = name
                shown.reset(steps)
                shown.set_description(name)
                shown.n = shown.initial = step  # what an earlier process did says nothing of the speed
            shown.update(step - shown.n)
            shown.set_postfix(loss=f"{figures.get('loss', float('nan')):.4g}")

        yield show


def _lines(terminal: Terminal) -> "Progress":
    told: dict[str, int] = {}

    def show(name: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        tenth = 10 * step // steps
        if told.get(name) != tenth:
            told[name] = tenth
            terminal.say(f"{name} {step}/{steps}  loss {figures.get('loss', float('nan')):.4g}")

    return show


def with_memory(argv: list[str]) -> None:
    """Start this process anew with `MEMORY` in its environment, on Linux with glibc; what a person set stays.

    The settings are read when a program starts, so they cannot be made later. The process keeps its number.
    """
    import platform

    wanted = {name: value for name, value in MEMORY.items() if name not in os.environ}
    if "UNIDIFFUSER_MEMORY" in os.environ or platform.libc_ver()[0] != "glibc" or not wanted:
        return
    os.environ.update(wanted, UNIDIFFUSER_MEMORY="1")
    os.execv(sys.executable, [sys.executable, "-m", "unidiffuser", *argv])


def train_flags(parser: Parser) -> None:
    """The flags of train."""
    parser.add_argument("preset", nargs="?", help="the name of a recipe, in place of --data; an unknown one lists them")
    parser.flag("--data", metavar="FOLDER", help="pairs to train on; see `unidiffuser data check`")
    parser.flag("--run", metavar="FOLDER", help="checkpoints, metrics, and in the end the model: final/")
    parser.flag("--size", metavar="SIZE", help="tiny, small, base, large, huge or parameters: 30M (default: small)")
    whole: dict[str, Any] = {"type": flags.whole, "metavar": "N"}
    parser.flag("--steps", **whole, help="optimiser steps (default: derived)")
    parser.flag("--batch", **whole, help="samples a step, over all processes (default: derived)")
    parser.flag("--save-every", **whole, help="steps between checkpoints (default: derived)")
    parser.flag("--seed", **whole, help="of weights, order and noise (default: 0)")
    parser.flag("--name", help="what the model is called (default: the data's folder)")
    parser.flag("--start", metavar="MODEL", help="begin from the weights of a model: other grid, more modalities")
    parser.flag("--lora-rank", **whole, help="train only low-rank additions to the model of --start")
    parser.flag("--workers", **whole, help="loader processes; no effect on the result (default: 1)")
    parser.flag("--preview-every", **whole, help="steps between previews of every distribution (default: none)")
    parser.flag("--tensorboard", action="store_true", help="figures also to RUN/network/tensorboard")
    parser.flag("--sharding", help="none or fsdp: how the processes of torchrun share the network (default: none)")
    changes = {"type": flags.pair, "action": "append", "default": [], "metavar": "NAME=VALUE"}
    parser.flag("--set", **changes, help="change any setting of --print-config, such as training.lr=1e-3")
    parser.flag("--print-config", action="store_true", help="show every setting and stop")
    parser.flag("--dry-run", action="store_true", help="estimate memory and time and stop")
    flags.add_device(parser)


def preview_flags(parser: Parser) -> None:
    """The flags of preview."""
    parser.add_argument("run", help="the folder of a run")
    parser.flag("-n", type=flags.whole, default=4, metavar="N", help="samples of each distribution (default: 4)")

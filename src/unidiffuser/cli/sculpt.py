"""The verb text-to-3d: objects of a text, a turntable of each, and how they are read."""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal

if TYPE_CHECKING:
    from unidiffuser.pipeline import UniDiffuser
    from unidiffuser.text_to_3d import Sculpting

SIDE = 128
"""Pixels of a turntable's side."""


def text_to_3d(args: argparse.Namespace, terminal: Terminal) -> int:
    """Make an object whose pictures from all sides are what a model would draw of a text."""
    from unidiffuser import text_to_3d as recipe
    from unidiffuser.cli.outputs import beside

    n = 1 if args.n is None else args.n
    if n < 1 or args.views < 1:
        raise ValueError(f"objects and views are counted from 1, not {n} and {args.views}")
    places = _places(Path(args.out), n, args.force)
    model = flags.load(args)
    given = flags.given(args, model)
    if not given:
        raise ValueError("an object is made of something given; give --text")
    settings = settings_of(args, model)
    _, codec = recipe.pictures_of(model)
    run = Path(args.run) if args.run else places[0].with_suffix(".run")
    seeds, seen, read = [settings.training.seed + k for k in range(n)], [], []
    for seed, place in zip(seeds, places, strict=True):
        own = replace(settings, training=replace(settings.training, seed=seed))
        with terminal.progress(f"seed {seed}") as bar:
            field = recipe.sculpt(model, given, own, run / f"seed-{seed}", progress=partial(_shown, bar, own))
        with beside(place) as aside:
            recipe.write_gif(recipe.turntable(field, own, SIDE), aside)
        seen.append(recipe.views(field, own, recipe.rendered(codec), args.views, 0))
        read.append(recipe.read_right(seen[-1], str(given.get("text", ""))))
    answer: dict[str, Any] = {"turntables": [str(place) for place in places], "seeds": seeds, "run": str(run)}
    answer |= {"method": args.method, "divergence": settings.method.divergence, "views": args.views}
    lines = [str(place) for place in places]
    known = [one for one in read if one is not None]
    if known:
        answer |= {"read": known, "read_right": statistics.fmean(one["share"] for one in known)}
        lines.append(f"{100 * answer['read_right']:.0f} % of {args.views} views read as the text says")
    if n > 1:
        answer["diversity"] = recipe.diversity(seen)
        lines.append(f"objects differ by {answer['diversity']:.3f}, root mean square of pixels from -1 to 1")
    terminal.answer({**answer, "model": model.name, "model_sha256": model.digest}, lines)
    return 0


def _shown(bar: Callable[[int, int], None], settings: "Sculpting", step: int, _: Mapping[str, float]) -> None:
    bar(step, settings.training.steps)


def settings_of(args: argparse.Namespace, model: "UniDiffuser") -> "Sculpting":
    """How the object is made, as the flags say."""
    from unidiffuser.guidance import Guidance
    from unidiffuser.text_to_3d import WAYS, Sculpting, optimiser

    if args.method not in WAYS:
        raise ValueError(f"there is no method {args.method!r}; there are {', '.join(WAYS)}")
    method = WAYS[args.method]
    if args.divergence is not None:
        if args.method == "sds":
            raise ValueError("the method sds has no critic, so its divergence cannot be chosen; use uni-instruct")
        method = replace(method, divergence=args.divergence)
    scale = flags.guidance(args)
    if scale is not None and not isinstance(scale, Guidance):
        scale = replace(model.settings.guidance, scale=scale)
    training = optimiser(400 if args.steps is None else args.steps, args.seed or 0)
    return Sculpting(method=method, guidance=scale, training=training)


def _places(out: Path, n: int, force: bool) -> list[Path]:
    """The files of n turntables, none of them there yet."""
    if out.suffix.lower() != ".gif":
        raise ValueError(f"a turntable is a GIF, and {out} does not end in .gif; rename it")
    places = [out if k == 0 else out.with_stem(f"{out.stem}-{k}") for k in range(n)]
    for place in places:
        if place.is_dir() or (place.exists() and not force):
            raise ValueError(f"{place} is there already; use --force to overwrite it, or another --out")
    return places


def text_to_3d_flags(parser: Parser) -> None:
    """The flags of text-to-3d."""
    flags.add_given(parser)
    parser.flag("--method", default="uni-instruct", metavar="NAME", help="sds, vsd or uni-instruct (default)")
    parser.flag("--divergence", metavar="NAME", help="forward-kl (default of uni-instruct), ...; see distill")
    scale = {"action": "append", "default": [], "metavar": "[NAME=]S"}
    parser.flag("--guidance", **scale, help="guidance of the teacher (default: 3)")
    parser.flag("--g", **scale, help="the same in the convention g = s + 1, 1 = off")
    whole: dict[str, Any] = {"type": flags.whole, "metavar": "N"}
    parser.flag("--steps", **whole, help="optimiser steps (default: 400)")
    parser.flag("-n", **whole, help="objects, each with a seed of its own (default: 1)")
    parser.flag("--seed", **whole, help="of the first object (default: 0)")
    parser.flag("--views", default=24, **whole, help="random views that are read (default: 24)")
    parser.flag("--run", metavar="FOLDER", help="checkpoints and metrics (default: beside --out, with .run)")
    parser.flag("--out", required=True, metavar="FILE.gif", help="the turntable; further ones get -1, -2, ...")
    parser.flag("--force", action="store_true", help="overwrite files that are there")

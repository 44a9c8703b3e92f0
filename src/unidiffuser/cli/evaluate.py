"""The verb evaluate: a model against pairs of its own kind, or a model of the scenes against their truth."""

import argparse
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal

if TYPE_CHECKING:
    from unidiffuser.pipeline import UniDiffuser

WORLD = "scenes"
ONLY_WITH_DATA = ("html", "features", "inception", "clip", "only")


def evaluate(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure a model against data of yours, or a model of the scenes against their truth."""
    return with_data(args, terminal) if args.data else with_scenes(args, terminal)


def settings_of(args: argparse.Namespace, model: "UniDiffuser") -> dict[str, Any]:
    """How to sample, as the flags say."""
    chosen = {"steps": args.steps, "solver": args.solver, "guidance": flags.guided(args, model.settings.guidance)}
    chosen |= {"label": args.label, "reuse": args.reuse}
    return {name: value for name, value in chosen.items() if value is not None}


def with_data(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure a model against the pairs of a folder or a world."""
    from pathlib import Path

    from unidiffuser.cli.outputs import beside
    from unidiffuser.datasets import open_data
    from unidiffuser.evaluation import lines
    from unidiffuser.evaluation.page import page
    from unidiffuser.evaluation.reference import Truth, World
    from unidiffuser.evaluation.report import measure, prepare

    if args.html and Path(args.html).exists() and not args.force:
        raise ValueError(f"{args.html} is there already; use --force to overwrite it, or another --html")
    model = flags.load(args)
    seed = args.seed or 0
    world = args.data == WORLD and not Path(args.data).exists()
    data: Truth = World(seed=seed) if world else open_data(args.data, seed=seed)
    with terminal.progress("evaluating") as progress:
        trial = prepare(
            model,
            data,
            200 if args.samples is None else args.samples,
            seed=seed,
            settings=settings_of(args, model),
            features=args.features,
            inception=args.inception,
            clip=args.clip,
            download=args.download,
            progress=lambda what, done, total: progress(done, total),
        )
        report = measure(trial, args.only)
    about = {"model": model.name, "model_sha256": model.digest, "data": args.data, "data_sha256": data.digest}
    if args.html:
        with beside(Path(args.html)) as place:
            place.write_text(page(report, trial), encoding="utf-8")
        about["html"] = args.html
    terminal.answer({**about, **report}, list(lines(report)))
    return 0


def with_scenes(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure a model of the scenes against their truth."""
    from unidiffuser.evaluate import evaluate_scenes, markdown

    for name in ONLY_WITH_DATA:
        if getattr(args, name):
            raise ValueError(f"--{name} goes with --data; without it the model is measured against the scenes")
    model = flags.load(args)
    with terminal.progress("evaluating") as progress:
        report = evaluate_scenes(
            model,
            1000 if args.samples is None else args.samples,
            seed=args.seed or 0,
            settings=settings_of(args, model),
            progress=lambda what, done, total: progress(done, total),
        )
    terminal.answer(
        {"model": model.name, "model_sha256": model.digest, "world": "scenes", **report}, [markdown(report)]
    )
    return 0


def evaluate_flags(parser: Parser) -> None:
    """The flags of evaluate."""
    parser.add_argument("model", help="name of a model in the box, or a folder")
    parser.flag(
        "--data",
        metavar="FOLDER",
        help="true pairs to measure against, best such that it was not trained on; 'scenes': those of the world",
    )
    flags.add_placement(parser)
    parser.flag("--samples", type=flags.whole, metavar="N", help="of each, 8 to 10000 (default: 200; scenes: 1000)")
    parser.flag("--seed", type=flags.whole, help="of pairs and noise (default: 0)")
    only = {"action": "append", "metavar": "MEASURE"}
    parser.flag("--only", **only, help="one measure of the report; may be repeated; an unknown one lists them")
    parser.flag("--features", metavar="NAME", help="vectors of pictures: random, autoencoder, inception")
    parser.flag("--inception", metavar="FILE", help="the weights of Inception v3 as FID uses it")
    parser.flag(
        "--clip", metavar="CLIP", help="of the CLIP score: a folder or a hub name (default: ViT-B/32, if cached)"
    )
    parser.flag("--html", metavar="FILE", help="write the report as one page with pictures")
    parser.flag("--force", action="store_true", help="overwrite files that are there")
    flags.add_settings(parser)

"""The command line: verbs only, no maths.

    unidiffuser sample image --text "a large red circle" -n 4      what is sampled is named, what is given is a flag

Results go to files and to stdout (with --json one object), everything else to stderr; `terminal` says how errors end.
What a verb needs is imported inside it, so that --help need not wait for torch.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from unidiffuser import __version__
from unidiffuser.cli import asking, data, flags, recommend
from unidiffuser.cli import distill as one_step
from unidiffuser.cli import train as training
from unidiffuser.cli.convert import convert, convert_flags
from unidiffuser.cli.evaluate import evaluate, evaluate_flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.sculpt import text_to_3d, text_to_3d_flags
from unidiffuser.cli.spreading import add_spreading
from unidiffuser.cli.terminal import Terminal, Verb, guarded


def sample(args: argparse.Namespace, terminal: Terminal) -> int:
    """Draw samples of the named modalities, given the values of others; all else is ignored."""
    if args.prompts or args.ray:
        from unidiffuser.cli.bulk import sample_in_bulk

        return sample_in_bulk(args, terminal)
    if args.workers is not None or args.shard is not None:
        raise ValueError("--workers and --shard go with --prompts and --ray; leave them out")
    from unidiffuser.recipe import read_recipe
    from unidiffuser.request import Request, made_alike, request_of

    recipe = flags.reading(read_recipe, args.like) if args.like else None
    model = flags.load(args, recipe)
    flags.check_names(model, args.names)
    given = flags.given(args, model)
    base = request_of(recipe, given) if recipe else Request(names=tuple(args.names))
    asked = flags.request(args, base, given, model)
    shown = args.names or asked.names
    if strangers := [name for name in shown if name not in asked.names]:
        raise ValueError(
            f"{args.like} shows {', '.join(asked.names)} and not {', '.join(strangers)}; name one of those"
        )
    written = any(model.modalities[name].media_type != "text" for name in shown)
    outputs = flags.outputs(args, written, model)
    stems = [f"{k:04d}" for k in range(asked.n)]
    outputs.reserve((stem, shown) for stem in stems)
    started = time.monotonic()
    with terminal.progress("sampling") as progress:
        samples = asked.draw(model, progress)
    answer: dict[str, Any] = {"samples": [], **flags.settings(model, asked)}
    answer["seconds"] = round(time.monotonic() - started, 3)
    for stem, one in zip(stems, samples, strict=True):
        recipe_of_one = None if args.no_metadata or args.mark_only else asked.recipe(model, one, __version__)
        values = {name: one[name] for name in shown}
        answer["samples"].append({"seed": one.seed, **outputs.write(stem, values, recipe_of_one)})
    if recipe and (alike := made_alike(recipe, asked.recipe(model, samples[0], __version__))) is not None:
        answer["reproduced"] = alike
        if not alike:
            terminal.say(f"the pixels are not those of {args.like}; another version or machine may have made it")
    outputs.write_list(answer)
    terminal.answer(answer, ["\t".join(str(row[name]) for name in shown) for row in answer["samples"]])
    return 0


def chain(args: argparse.Namespace, terminal: Terminal) -> int:
    """Feed samples back: the first modality is given (or sampled alone), each next is sampled from the one before."""
    from unidiffuser.request import Request

    model = flags.load(args)
    flags.check_names(model, args.names)
    if args.rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, not {args.rounds}")
    links = [name for name, _ in groupby(args.names * args.rounds)] if args.rounds > 1 else args.names
    asked = flags.request(args, Request(names=tuple(links)), flags.given(args, model), model)
    outputs = flags.outputs(args, True, model)
    first = 1 if links and links[0] in asked.given else 0
    outputs.reserve((f"{k:04d}-{i:02d}", [links[i]]) for k in range(asked.n) for i in range(first, len(links)))
    with terminal.progress("sampling") as progress:
        chains = asked.draw_chain(model, progress)
    answer: dict[str, Any] = {"samples": [], **flags.settings(model, asked)}
    for k, row in enumerate(chains):
        for i, one in enumerate(row, first):
            made = asked.link(model, i, one)
            recipe = None if args.no_metadata or args.mark_only else made.recipe(model, one, __version__)
            value = outputs.write(f"{k:04d}-{i:02d}", {links[i]: one[links[i]]}, recipe)
            answer["samples"].append({"chain": k, "link": i, "seed": one.seed, **value})
    outputs.write_list(answer)
    terminal.answer(answer, [str(row[links[row["link"]]]) for row in answer["samples"]])
    return 0


def score(args: argparse.Namespace, terminal: Terminal) -> int:
    """Say in bits how much one given modality tells about another, by the model's own belief."""
    from unidiffuser.cli.outputs import Outputs, heat

    model = flags.load(args)
    given = flags.given(args, model)
    if len(given) != 2:
        raise ValueError(f"a score is between two given modalities, and {len(given)} are given; give two of them")
    pictures = [name for name in given if model.modalities[name].media_type == "image"]
    of = args.of or (pictures or list(given))[0]
    flags.check_names(model, [of])
    about = next(name for name in given if name != of)
    outputs = Outputs(folder=flags.folder_of(args, False), codecs=model.modalities, force=args.force)
    outputs.reserve([("map", pictures[:1])])
    result = model.score(of, about, samples=args.samples, seed=args.seed or 0, **given)[0]
    answer: dict[str, Any] = {"bits": result.bits, "error": result.error, "of": of, "about": about}
    answer |= {"samples": args.samples, "model": model.name, "model_sha256": model.digest}
    if of in pictures and outputs.folder:
        answer["map"] = outputs.write("map", {of: heat(next(iter(result.maps.values())))}, None)[of]
    outputs.write_list(answer)
    terminal.answer(answer, [f"{about} tells {result.bits:.1f} ± {result.error:.1f} bits about {of}"])
    return 0


def serve(args: argparse.Namespace, terminal: Terminal) -> int:
    """Open the studio: a page and an HTTP API for models, on this machine unless told otherwise."""
    from unidiffuser.cli.serving import open_server

    open_server(args, terminal)
    return 0


def models(args: argparse.Namespace, terminal: Terminal) -> int:
    """List the models in the box and in folders."""
    from unidiffuser.checkpoints import box, native

    rows = [native.summary(box.find(name)) for name in args.folders or box.names()]
    lines = [
        "  ".join([row["name"], f"{row['bytes'] / 1e6:.1f} MB", row["sha256"][:10], *row["modalities"], row["folder"]])
        for row in rows
    ]
    terminal.answer({"models": rows}, lines or ["there is no model in the box; name a folder"])
    return 0


def doctor(args: argparse.Namespace, terminal: Terminal) -> int:
    """Say what is installed, whether the models in the box are whole, and how long a sample takes."""
    from unidiffuser.cli.doctor import examine

    report = examine(__version__)
    lines = [f"{name}: {value}" for name, value in report.items() if name != "models"]
    lines += [
        f"model {name}: " + ", ".join(f"{k} {v}" for k, v in found.items()) for name, found in report["models"].items()
    ]
    terminal.answer(report, lines)
    return 0 if report["healthy"] else 1


def sample_flags(parser: Parser) -> None:
    """The flags of sample."""
    parser.add_argument("names", nargs="*", metavar="MODALITY", help="what to sample: image, text, ...")
    flags.add_given(parser)
    flags.add_sampling(parser)
    named = {"type": flags.pair, "action": "append", "default": []}
    parser.flag("--loose", metavar="NAME=T", **named, help="hold a given modality at timestep T: 0 exact, 1 ignored")
    parser.flag("--mask", metavar="NAME=FILE", **named, help="make only the white part of a sampled, given picture")
    parser.flag("--size", type=flags.size, metavar="WxH", help="width and height of pictures (default: the model's)")
    parser.flag("--like", metavar="PNG", help="as the recipe in a picture says; other flags change it")
    parser.flag("--prompts", metavar="FILE", help='JSON lines such as {"text": ...}: -n samples of each, into shards')
    parser.flag("--shard", type=flags.whole, metavar="N", help="with --prompts or --ray: samples a shard (default: 64)")
    add_spreading(parser)
    flags.add_output(parser)


def chain_flags(parser: Parser) -> None:
    """The flags of chain."""
    parser.add_argument("names", nargs="*", metavar="MODALITY", help="the links, such as: text image text")
    flags.add_given(parser)
    flags.add_sampling(parser)
    parser.flag("--rounds", type=flags.whole, default=1, metavar="N", help="go through the links N times (default: 1)")
    flags.add_output(parser)


def score_flags(parser: Parser) -> None:
    """The flags of score."""
    flags.add_given(parser)
    parser.flag("--of", metavar="NAME", help="the modality that is explained (default: the picture)")
    parser.flag("--samples", type=flags.whole, default=64, metavar="N", help="noise draws (default: 64)")
    parser.flag("--seed", type=flags.whole, help="of the noise (default: 0)")
    parser.flag("--out", metavar="FOLDER", help="write a map of the bits over the picture there")
    parser.flag("--force", action="store_true", help="overwrite files that are there")


def serve_flags(parser: Parser) -> None:
    """The flags of serve."""
    parser.flag("--port", type=flags.whole, default=8000, help="where to listen (default: 8000)")
    parser.flag("--host", default="127.0.0.1", help="the address to listen on; beyond this machine it needs a token")
    several = {"action": "append", "default": [], "metavar": "MODEL"}
    parser.flag("--model", **several, help="name of a model in the box, or a folder; may be repeated (default: scenes)")
    parser.flag(
        "--token", action="append", default=[], help="who may come in; one for each client (or UNIDIFFUSER_TOKEN)"
    )
    parser.flag(
        "--data-dir", metavar="FOLDER", help="where history and results lie (default: ~/.local/share/unidiffuser)"
    )
    parser.flag("--device", action="append", default=[], help="cpu, cuda:0, ...; one worker each, may be repeated")
    parser.flag("--ray", action="store_true", help="carry out jobs on Ray Serve replicas")
    parser.flag("--replicas", type=flags.whole, default=2, metavar="N", help="with --ray: how many (default: 2)")


def models_flags(parser: Parser) -> None:
    """The flags of models."""
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="models elsewhere (default: those in the box)")


VERBS: dict[str, tuple[Verb, Callable[[Parser], None] | None, bool]] = {
    "sample": (sample, sample_flags, True),
    "chain": (chain, chain_flags, True),
    "score": (score, score_flags, True),
    "data check": (data.check, data.check_flags, False),
    "data encode": (data.encode, data.encode_flags, False),
    "train": (training.train, training.train_flags, False),
    "preview": (training.preview, training.preview_flags, False),
    "distill": (one_step.distill, one_step.distill_flags, False),
    "compare": (one_step.compare, one_step.compare_flags, False),
    "text-to-3d": (text_to_3d, text_to_3d_flags, True),
    "evaluate": (evaluate, evaluate_flags, False),
    "serve": (serve, serve_flags, False),
    "models": (models, models_flags, False),
    "convert": (convert, convert_flags, False),
    "doctor": (doctor, None, False),
    **recommend.VERBS,
    **asking.VERBS,
}
"""Verb, of one word or two -> what it does, the flags of its own, whether it takes a model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    if argv is None:
        argv = sys.argv[1:]
        if argv[:1] == ["train"]:
            training.with_memory(argv)
    if not argv or argv[0] in ("-h", "--help", "--version"):
        print(
            f"unidiffuser {__version__}" if argv[:1] == ["--version"] else overview(),
            file=sys.stdout if argv else sys.stderr,
        )
        return 0 if argv else 2
    words = 2 if any(verb.startswith(f"{argv[0]} ") for verb in VERBS) else 1
    verb = " ".join(argv[:words])
    if words == 2 and argv[1:2] in ([], ["-h"], ["--help"]):
        print(family(argv[0]), file=sys.stdout if argv[1:] else sys.stderr)
        return 0 if argv[1:] else 2
    if verb not in VERBS:
        known = ", ".join(VERBS)
        print(f"unidiffuser: there is no verb {verb!r}; there are {known}{flags.guess(verb, VERBS)}", file=sys.stderr)
        return 2
    run, own_flags, takes_model = VERBS[verb]
    parser = Parser(f"unidiffuser {verb}", run.__doc__ or "")
    if own_flags:
        own_flags(parser)
    if takes_model:
        flags.add_model(parser)
    flags.add_manners(parser)
    args = parser.parse(argv[words:])
    return guarded(run, args)


def family(word: str) -> str:
    """What the help of the first word of some verbs says."""
    return f"usage: unidiffuser {word} VERB ...\n\n{_verbs(f'{word} ')}\n\n  unidiffuser {word} VERB --help says more"


def _verbs(prefix: str = "") -> str:
    width = max(map(len, VERBS))
    chosen = {name: run for name, (run, _, _) in VERBS.items() if name.startswith(prefix)}
    return "\n".join(f"  {name:<{width}}  {run.__doc__}" for name, run in chosen.items())


def overview() -> str:
    """What --help says."""
    return (
        "usage: unidiffuser VERB ...\n\n"
        "One diffusion model for every distribution of a set of modalities.\n"
        "What is sampled is named, what is given is a flag, the rest is ignored.\n\n"
        f"{_verbs()}\n\n"
        '  unidiffuser sample image --text "a large red circle above a small blue square" -n 4\n'
        "  unidiffuser VERB --help says more"
    )

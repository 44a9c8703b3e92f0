"""The verb convert: a model from one format into another."""

import argparse
from pathlib import Path

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal

COMPONENTS = {"encoder": "clip_text", "vision": "clip_image", "gpt2": "gpt2"}


def convert(args: argparse.Namespace, terminal: Terminal) -> int:
    """Convert a released UniDiffuser, original files or a diffusers folder, into a model folder, or back."""
    from unidiffuser.checkpoints import convert as formats

    beside = {name: Path(path) for name, flag in COMPONENTS.items() if (path := getattr(args, flag)) is not None}
    place = Path(args.place)
    if place.exists() and not args.force:
        raise ValueError(f"{place} is there already; use --force to replace it, or choose another place")
    terminal.say(f"reading {args.source}")
    parts, missing = formats.read(args.source, beside=beside, heads=args.heads, download=args.download)
    terminal.say(f"writing {place}")
    formats.write(place, parts, args.to, stored=args.stored, force=args.force)
    for lack in missing:
        terminal.say(f"note: {lack}")
    answer = {"model": str(place), "format": args.to, "missing": missing}
    terminal.answer(answer, [str(place)])
    return 0


def convert_flags(parser: Parser) -> None:
    """The flags of convert."""
    parser.add_argument("source", help="a folder, or a repository of the hub such as thu-ml/unidiffuser-v1")
    parser.add_argument("place", help="the folder to make")
    parser.flag("--to", default="native", metavar="FORMAT", help="native (ours) or diffusers (default: native)")
    stored = ("float32", "float16", "bfloat16")
    parser.flag("--stored", default="float32", choices=stored, help="numbers of the weights (default: float32)")
    parser.flag("--clip-text", metavar="FOLDER", help="CLIP ViT-L/14, for original files that lack it")
    parser.flag("--clip-image", metavar="FOLDER", help="CLIP ViT-B/32, for original files")
    parser.flag("--gpt2", metavar="FOLDER", help="GPT-2's tokenizer, for original files")
    parser.flag("--heads", type=flags.whole, metavar="N", help="attention heads, for original files of another size")
    parser.flag("--download", action="store_true", help="allow a repository of the hub to be fetched")
    parser.flag("--force", action="store_true", help="replace a model that is there")

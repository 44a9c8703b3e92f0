"""The verb data: look at a data set before training, and run the codecs over it once."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.spreading import add_spreading, carrying, check_spreading
from unidiffuser.cli.terminal import Terminal

if TYPE_CHECKING:
    from unidiffuser.modalities import Modality

STORED = ("float32", "float16", "bfloat16")


def check(args: argparse.Namespace, terminal: Terminal) -> int:
    """Say what of a data set will be used, what is damaged, and why; exit code 2 if it cannot be trained on."""
    from unidiffuser.datasets import open_data
    from unidiffuser.datasets.checking import check
    from unidiffuser.recommend.tables import is_events

    if len(args.data) == 1 and is_events(args.data[0]):
        return check_events(args.data[0], terminal)
    try:
        data = open_data(args.data, budget=args.budget, tolerant=True)
        with terminal.progress("checking") as progress:
            report = check(data, progress)
    except ValueError as error:
        report = {"usable": False, "why": " ".join(str(error).split())}
    terminal.answer(report, described(report))
    return 0 if report["usable"] else 2


def check_events(path: str, terminal: Terminal) -> int:
    """The same of a table of events, which users, items and queries are learnt from."""
    from unidiffuser.recommend.tables import report

    found: dict[str, Any] = {"usable": True}
    try:
        found |= report(path)
    except ValueError as error:
        found = {"usable": False, "why": " ".join(str(error).split())}
    lines = [f"{name}: {value}" for name, value in found.items() if name not in ("usable", "why", "counts")]
    lines = ["usable", *lines] if found["usable"] else [f"not usable: {found['why']}"]
    terminal.answer(found, lines + [f"  {what}: {n}" for what, n in found.get("counts", {}).items()])
    return 0 if found["usable"] else 2


def encode(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the codecs over a data set once and store the latents in checked shards; the same line goes on if stopped."""
    from unidiffuser import encode as encoding
    from unidiffuser.datasets import open_data

    check_spreading(args)
    if args.model and args.codecs:
        raise ValueError("--model and --codecs both say which codecs to use; give one of them")
    if args.stored not in STORED:
        raise ValueError(f"--stored must be {', '.join(STORED)}, not {args.stored!r}")
    codecs = _codecs(args)
    options = {name: codec.config() for name, codec in codecs.items()} if codecs else {}
    rates = {name: {"sample_rate": o["sample_rate"]} for name, o in options.items() if "sample_rate" in o}
    data = open_data(args.data, budget=args.budget, options=rates)
    if not codecs:
        terminal.say("fitting the codecs")
        codecs = encoding.fitted(data)
    chosen = {"stored": args.stored, "force": args.force, "device": args.device}
    with carrying(args) as carry, terminal.progress("encoding") as progress:
        manifest = encoding.encode(data, codecs, Path(args.out), **chosen, progress=progress, carry=carry)
    shards = [shard for source in manifest.sources for shard in source.shards]
    answer = {
        "out": args.out,
        "samples": sum(shard.rows for shard in shards),
        "damaged": sum(sum(shard.damaged.values()) for shard in shards),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
        "codecs_sha256": manifest.codecs,
        "streams": manifest.streams,
    }
    size = f"{answer['bytes'] / 1e6:.1f} MB in {len(shards)} shards"
    terminal.answer(answer, [f"{args.out}: {answer['samples']} samples, {answer['damaged']} damaged, {size}"])
    return 0


def _codecs(args: argparse.Namespace) -> "Mapping[str, Modality[Any]]":
    """The codecs that --model or --codecs names; none if they are to be fitted."""
    if args.model:
        from unidiffuser.checkpoints import box, native

        return _sized(native.read(box.find(args.model)).modalities, args.size)
    if args.codecs:
        from unidiffuser.datasets.codec_files import load_codecs

        return _sized(load_codecs(Path(args.codecs)), args.size)
    if args.size:
        raise ValueError(
            "--size is for the codecs of --model or --codecs; those that are fitted have the size that data.json "
            'declares: {"modalities": {"image": {"kind": "image", "size": 128}}}'
        )
    return {}


def _sized(codecs: "Mapping[str, Modality[Any]]", size: tuple[int, int] | None) -> "Mapping[str, Modality[Any]]":
    """Codecs for pictures of a size, if one is asked for."""
    from unidiffuser.training.warm import resized

    pictures = [name for name, codec in codecs.items() if codec.media_type == "image"]
    if size and not pictures:
        raise ValueError(f"--size is for pictures, and there are codecs for {', '.join(codecs)} only; leave it out")
    return {**codecs, **{name: resized(codecs[name], *size) for name in pictures}} if size else codecs


def described(report: Mapping[str, Any]) -> list[str]:
    """A report in lines for a person."""
    if "sources" not in report:
        return [f"not usable: {report['why']}"]
    lines = ["usable" if report["usable"] else f"not usable: {report['why']}"]
    for name, options in report["modalities"].items():
        kept = [f"{key} {value}" for key, value in options.items() if key not in ("kind", "present")]
        lines.append(f"{name}: {options['present']} samples; {', '.join([options['kind'], *kept])}")
    for source in report["sources"]:
        lines += _source(source)
    if report["epoch"] != report["samples"]:
        lines.append(f"an epoch has {report['epoch']} samples, since rows take turns or sources are mixed")
    return lines


def _source(source: Mapping[str, Any]) -> list[str]:
    columns = ", ".join(f"{name} from {column}" for name, column in source.get("columns", {}).items())
    of = f" of {source['rows']} rows" if "rows" in source else ""
    lines = [f"{source['path']} ({source.get('format', 'encoded')}): {source['usable']} samples{of}"]
    lines += [f"  {columns}"] if columns else []
    for kind in ("damaged", "lost", "filtered", "without", "ignored", "noted"):
        for reason, found in source.get(kind, {}).items():
            names = f" ({', '.join(found['first'])}{', ...' if found['count'] > len(found['first']) else ''})"
            lines.append(f"  {kind}: {found['count']} x {reason}{names if found['first'] else ''}")
    return lines


def check_flags(parser: Parser) -> None:
    """The flags of data check."""
    _add_data(parser)


def encode_flags(parser: Parser) -> None:
    """The flags of data encode."""
    _add_data(parser)
    parser.flag("--out", required=True, metavar="FOLDER", help="where the latents go")
    parser.flag("--model", metavar="MODEL", help="use the codecs of a model: its name in the box, or a folder")
    parser.flag("--codecs", metavar="FOLDER", help="use the codecs of encoded data (default: fit them on the data)")
    parser.flag("--size", type=flags.size, metavar="WxH", help="of the pictures of --model or --codecs, in pixels")
    parser.flag("--stored", default="float32", metavar="FORMAT", help=f"of the numbers: {', '.join(STORED)}")
    parser.flag("--force", action="store_true", help="replace latents of other codecs or other data")
    flags.add_device(parser)
    add_spreading(parser)


def _add_data(parser: Parser) -> None:
    parser.add_argument("data", nargs="+", metavar="FOLDER", help="folder, file or declaration; several are chained")
    parser.flag("--budget", type=float, metavar="SHARE", help="of samples that may be damaged (default: 0.1)")

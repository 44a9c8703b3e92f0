"""Flags and what they mean: the vocabulary that the verbs of the command line share.

    --text "a red circle"  --image photo.png  --given NAME=VALUE      what is given: a text is itself, all else a file

`Parser` fails in one sentence with exit code 2, and guesses what a mistyped flag was meant to be. This file reads what
the flags name; it writes nothing. Torch is imported only when a model is.
"""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from unidiffuser.cli.outputs import Outputs
    from unidiffuser.guidance import Guidance
    from unidiffuser.pipeline import UniDiffuser
    from unidiffuser.recipe import Recipe
    from unidiffuser.request import Request
    from unidiffuser.reuse import Reuse

MEDIA = ("image", "text", "sound", "vector")
DTYPES = ("float32", "bfloat16", "float16", "int8")
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one sentence."""

    def __init__(self, prog: str, about: str) -> None:
        super().__init__(prog=prog, description=about, allow_abbrev=False, formatter_class=argparse.HelpFormatter)
        self.known_flags: list[str] = []

    def flag(self, *names: str, **options: Any) -> None:
        """Add a flag that a mistyped one may be compared with."""
        self.known_flags += names
        self.add_argument(*names, **options)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; flags may stand among names."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            self.error(f"there is no {wrong!r} here{guess(wrong.partition('=')[0], self.known_flags)}")
        return args

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def guess(word: str, words: Iterable[str]) -> str:
    """ "; did you mean ...?" if a known word is near."""
    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {near[0]}?" if near else ""


def whole(text: str) -> int:
    """A whole number from a flag."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it must be a whole number, not {text[:40]!r}") from error


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE from a flag."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"it must be NAME=VALUE, not {text[:40]!r}")
    return name, value


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT from a flag."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"it must be WIDTHxHEIGHT such as 512x512, not {text[:40]!r}")
    return int(match[1]), int(match[2])


def words(text: str) -> str:
    """The words of a watermark from a flag."""
    from unidiffuser.marking import check_words

    try:
        return check_words(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def reuse(text: str) -> "Reuse":
    """EVERY or EVERY,OUTER from a flag."""
    from unidiffuser.reuse import Reuse

    every, _, outer = text.partition(",")
    if not every.isdecimal() or (outer and not outer.isdecimal()):
        raise argparse.ArgumentTypeError(f"it must be EVERY or EVERY,OUTER such as 3,2, not {text[:40]!r}")
    try:
        return Reuse(every=int(every), **({"outer": int(outer)} if outer else {}))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def interval(text: str) -> tuple[float, float]:
    """LOW,HIGH from a flag: the timesteps between which guidance acts."""
    from unidiffuser.guidance import Guidance

    low, _, high = text.partition(",")
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it must be LOW,HIGH such as 0.2,0.8, not {text[:40]!r}") from error
    try:
        return Guidance(interval=ends).interval
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def numbers(pairs: Iterable[tuple[str, str]], flag: str) -> dict[str, float]:
    """modality -> number from NAME=NUMBER flags."""
    result = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{flag} is given twice for {name!r}; give it once")
        result[name] = number(value, flag)
    return result


def number(text: str, flag: str) -> float:
    """A number from a flag."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{flag} must be a number, not {text[:40]!r}") from error


def add_manners(parser: Parser) -> None:
    """The flags that every verb has: how it speaks."""
    parser.flag("--json", action="store_true", help="one JSON object on stdout")
    parser.flag("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    parser.flag("--debug", action="store_true", help="show where an error came from")


def add_model(parser: Parser) -> None:
    """The flags that say which model, and where it runs."""
    parser.flag("--model", metavar="MODEL", help="name of a model in the box, or a folder (default: scenes)")
    lora = {"action": "append", "default": [], "metavar": "FILE[=S]"}
    parser.flag("--lora", **lora, help="add an adapter to the model, S times (default: 1); may be repeated")
    add_placement(parser)


def add_placement(parser: Parser) -> None:
    """The flags that say where and how a loaded model runs."""
    add_device(parser)
    parser.flag("--dtype", choices=DTYPES, help="numbers of the large parts (default: float32; int8: CPUs only)")
    parser.flag("--low-memory", action="store_true", help="load each part when it is needed and drop it after")
    parser.flag("--download", action="store_true", help="allow a model of the hub (owner/name) to be fetched")


def add_device(parser: Parser) -> None:
    """The flag that says where the network runs."""
    parser.flag("--device", default="cpu", help="where the network runs: cpu, cuda, mps (default: cpu)")


def add_given(parser: Parser) -> None:
    """The flags that give modalities."""
    parser.flag("--text", metavar="SENTENCE", help="given text; ___ stands for a word to be made")
    parser.flag("--image", metavar="FILE", help="given picture (PNG, JPEG, WebP)")
    parser.flag("--sound", metavar="FILE", help="given sound (WAV)")
    parser.flag("--vector", metavar="FILE", help="given numbers (JSON)")
    parser.flag("--given", metavar="NAME=VALUE", type=pair, action="append", default=[], help="any other modality")


def add_sampling(parser: Parser) -> None:
    """The flags that say what to sample, and how."""
    parser.flag("-n", type=whole, metavar="N", help="how many samples (default: 1)")
    parser.flag("--seed", type=whole, help="of the first sample; sample k has seed + k (default: random, and told)")
    add_settings(parser)


def add_settings(parser: Parser) -> None:
    """The flags that say how to sample."""
    parser.flag("--steps", type=whole, help="solver steps, 1 to 1000 (default: the model's)")
    parser.flag("--solver", help="the solver; an unknown name lists them (default: the model's)")
    scale = {"action": "append", "default": [], "metavar": "[NAME=]S"}
    parser.flag("--guidance", **scale, help="guidance scale s, 0 = off; for one modality NAME=S, may be repeated")
    parser.flag("--g", **scale, help="the same in the convention g = s + 1, 1 = off")
    parser.flag(
        "--guidance-interval", type=interval, metavar="LOW,HIGH", help="guide only there (default: as the model says)"
    )
    parser.flag("--label", type=whole, help="global label, for models that have one (default: the model's)")
    parser.flag(
        "--reuse", type=reuse, metavar="EVERY[,OUTER]", help="compute inner blocks at times only: faster, inexact"
    )
    parser.flag("--top-p", type=float, metavar="P", help="sample captions from the nucleus, for models that write them")


def add_output(parser: Parser) -> None:
    """The flags that say where samples go."""
    parser.flag("--out", metavar="FOLDER", help="where files go (default: the first free of out/0000, out/0001, ...)")
    parser.flag("--force", action="store_true", help="overwrite files that are there")
    parser.flag("--no-metadata", action="store_true", help="write pictures without recipe and without mark")
    parser.flag("--mark-only", action="store_true", help="write pictures without recipe, marked as synthetic")
    parser.flag("--watermark", metavar="WORDS", type=words, help="draw these words into pictures")


def load(args: argparse.Namespace, recipe: "Recipe | None" = None) -> "UniDiffuser":
    """The model that --model names, or the one in the box that made the recipe, with the adapters of --lora."""
    from unidiffuser.checkpoints import box, native

    adapters = vars(args).get("lora") or []
    if recipe is None:
        return adapted(opened(args.model or "scenes", args, "float32"), adapters)
    made_by = f"{args.like} was made by the model {recipe.model!r} with the hash {recipe.model_sha256[:10] or 'none'}"
    digests = {native.summary(box.find(name))["sha256"]: name for name in box.names()}
    name = args.model or digests.get(recipe.model_sha256) or ("scenes" if adapters else None)
    cure = "with --model, and with --lora the adapters that it had"
    if name is None:
        raise ValueError(f"{made_by}, which is not in the box; give its folder {cure}")
    model = adapted(opened(name, args, recipe.dtype), adapters)
    if model.digest != recipe.model_sha256:
        found = " with ".join([name, *adapters])
        raise ValueError(f"{made_by}, but {found} has {model.digest[:10]}; give that model's folder {cure}")
    return model


def adapted(model: "UniDiffuser", adapters: Sequence[str]) -> "UniDiffuser":
    """A model with the adapters of --lora merged into it; its hash then names both."""
    from unidiffuser.checkpoints.adapter import read

    for text in adapters:
        path, equals, strength = text.rpartition("=") if "=" in text else (text, "", "")
        additions, base = read(path)
        model.add(additions, number(strength, "--lora") if equals else 1.0, base=base)
    return model


def opened(name: str, args: argparse.Namespace, dtype: str) -> "UniDiffuser":
    """A model where and how the flags say; `dtype` unless they say another."""
    import torch

    from unidiffuser.pipeline import UniDiffuser

    dtype = args.dtype or dtype
    model = UniDiffuser.from_pretrained(
        name, device=args.device, dtype=getattr(torch, dtype), low_memory=args.low_memory, download=args.download
    )
    if vars(args).get("top_p") is not None:
        for codec in model.modalities.values():
            if codec.media_type == "text":
                codec.choose_decoding(top_p=args.top_p)
    return model


def given(args: argparse.Namespace, model: "UniDiffuser") -> dict[str, Any]:
    """modality -> raw value of all that the flags give."""
    pairs = [(name, getattr(args, name)) for name in MEDIA if getattr(args, name) is not None] + args.given
    values: dict[str, Any] = {}
    for name, value in pairs:
        check_names(model, [name])
        if name in values:
            raise ValueError(f"{name!r} is given twice; give it once")
        codec = model.modalities[name]
        values[name] = value if codec.media_type == "text" else reading(codec.read, value)
    return values


def masks(args: argparse.Namespace) -> dict[str, Any]:
    """modality -> mask picture of the --mask flags."""
    from unidiffuser.modalities.image import read_picture

    return {name: reading(read_picture, path) for name, path in vars(args).get("mask", [])}


def reading(read: Callable[[str], T], path: str) -> T:
    """What `read` makes of a file that the user named; a file that cannot be opened is a mistake of theirs."""
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or 'it cannot be opened'}") from error


def check_names(model: "UniDiffuser", names: Iterable[str]) -> None:
    """ValueError for a modality that the model does not have, with a guess."""
    for name in names:
        if name not in model.modalities:
            known = ", ".join(model.modalities)
            raise ValueError(f"this model has no modality {name!r}; it has {known}{guess(name, model.modalities)}")


def request(args: argparse.Namespace, base: "Request", given: Mapping[str, Any], model: "UniDiffuser") -> "Request":
    """A request to a model, with what the flags say put in the place of what it says."""
    from unidiffuser.guidance import Guidance

    said: dict[str, Any] = {"n": args.n, "seed": args.seed, "steps": args.steps, "solver": args.solver}
    said["guidance"] = guided(args, base.guidance if isinstance(base.guidance, Guidance) else model.settings.guidance)
    said |= {"label": args.label, "reuse": args.reuse, "size": vars(args).get("size")}
    said |= {
        "given": {**base.given, **given},
        "masks": masks(args),
        "looseness": numbers(vars(args).get("loose", []), "--loose"),
    }
    return replace(base, **{name: value for name, value in said.items() if value not in (None, {})})


def guided(args: argparse.Namespace, own: "Guidance") -> "Guidance | None":
    """The guidance that the flags say, where they are silent as `own`; None if all are."""
    said = {"scale": guidance(args), "interval": args.guidance_interval}
    said = {name: value for name, value in said.items() if value is not None}
    return replace(own, **said) if said else None


def guidance(args: argparse.Namespace) -> Any:
    """The scale of --guidance or --g, or None: a number, or a number per modality."""
    from unidiffuser.guidance import Guidance

    if args.guidance and args.g:
        raise ValueError("--guidance and --g are two conventions for one thing; give one of them")
    flag, texts = ("--guidance", args.guidance) if args.guidance else ("--g", args.g)
    if not texts:
        return None
    if any("=" in text for text in texts):
        scale: Any = numbers([pair(text) if "=" in text else ("", text) for text in texts], flag)
        if "" in scale:
            raise ValueError(f"{flag} is given with and without a modality; give one number, or NAME=NUMBER for each")
    elif len(texts) > 1:
        raise ValueError(f"{flag} is given twice; give one number, or NAME=NUMBER for each modality")
    else:
        scale = number(texts[0], flag)
    return scale if args.guidance else Guidance.from_g(scale).scale


def settings(model: "UniDiffuser", asked: "Request") -> dict[str, Any]:
    """How samples were made, for JSON."""
    chosen = model.choose(asked.steps, asked.solver, asked.guidance, asked.label, asked.reuse)
    return {
        "model": model.name,
        "model_sha256": model.digest,
        "steps": chosen.steps,
        "solver": chosen.solver,
        "guidance": asdict(chosen.guidance),
        "label": chosen.label,
        **({"reuse": asdict(chosen.reuse)} if chosen.reuse else {}),
        **({"looseness": dict(asked.looseness)} if asked.looseness else {}),
    }


def folder_of(args: argparse.Namespace, needed: bool) -> Path | None:
    """Where files go; None if none need be written and none were asked for."""
    from unidiffuser.cli.outputs import fresh_folder

    if args.out:
        return Path(args.out)
    return fresh_folder() if needed else None


def outputs(args: argparse.Namespace, needed: bool, model: "UniDiffuser") -> "Outputs":
    """Where samples go and how pictures are marked."""
    from unidiffuser.cli.outputs import Outputs

    return Outputs(
        folder=folder_of(args, needed),
        codecs=model.modalities,
        force=args.force,
        marked=not args.no_metadata,
        words=args.watermark or "",
    )

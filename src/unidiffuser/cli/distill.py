"""The verbs distill and compare: a one-step student of a model, and both side by side."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal

if TYPE_CHECKING:
    from unidiffuser.datasets import Pairs
    from unidiffuser.distill import Distillation
    from unidiffuser.instruct import Method
    from unidiffuser.pipeline import UniDiffuser


def distill(args: argparse.Namespace, terminal: Terminal) -> int:
    """Teach a student that samples in one step, going on where an earlier run in the same folder stopped."""
    from unidiffuser.cli.train import bar
    from unidiffuser.distill import distill as carry_out
    from unidiffuser.pipeline import UniDiffuser

    teacher = UniDiffuser.from_pretrained(args.model)
    settings = settings_of(args, teacher)
    if settings.method.matched:
        terminal.say(
            "the objective of the expanded form with all of its terms, by parts: the weight of the noise levels is "
            "matched, and no sample is divided by mean |x0 - T|"
        )
    pairs, data = pairs_of(args, teacher)
    with bar(terminal, True) as progress:
        carry_out(teacher, settings, Path(args.run), pairs=pairs, data=data, device=args.device, progress=progress)
    final = str(Path(args.run) / "final")
    terminal.answer({"model": final, "teacher": teacher.name, "steps": settings.training.steps}, [final])
    return 0


def settings_of(args: argparse.Namespace, teacher: "UniDiffuser") -> "Distillation":
    """How the student is taught: the recipe for any teacher, then what the flags say."""
    from unidiffuser.guidance import Guidance
    from unidiffuser.instruct import METHODS
    from unidiffuser.presets import student

    settings = student() if args.steps is None else student(args.steps)
    if args.method is not None:
        if args.method not in METHODS:
            known = f"there are {', '.join(METHODS)}{flags.guess(args.method, METHODS)}"
            raise ValueError(f"there is no method {args.method!r}; {known}")
        settings = replace(settings, method=METHODS[args.method])
    settings = replace(settings, method=_method(args, settings.method))
    training = {name: getattr(args, name) for name in ("batch", "lr", "seed", "save_every")}
    settings = replace(settings, training=replace(settings.training, **_given(training)))
    scale = flags.guidance(args)
    if scale is not None:
        guidance = scale if isinstance(scale, Guidance) else replace(teacher.settings.guidance, scale=scale)
        settings = replace(settings, guidance=guidance)
    own = {name: getattr(args, name) for name in ("begin", "warmup", "preview_every", "workers")}
    return replace(settings, **_given(own))


def _method(args: argparse.Namespace, method: "Method") -> "Method":
    """A row of the methods with what the flags change.

    Raises:
        ValueError: what is no method, or a flag that the form of the gradient knows nothing of.
    """
    from unidiffuser.instruct import by_parts

    said = {name: getattr(args, name) for name in ("divergence", "weight")}
    if args.no_adversarial:
        said["adversarial"] = 0.0
    method = replace(method, **_given(said))
    method = (
        by_parts(method)
        if args.estimator == "integral"
        else replace(method, estimator=args.estimator or method.estimator)
    )
    if args.detach_ratio and method.estimator == "integral":
        raise ValueError("the integral form has no gradient of the ratio to leave out; drop --detach-ratio")
    return replace(method, ratio_gradient=method.ratio_gradient and not args.detach_ratio)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def pairs_of(args: argparse.Namespace, teacher: "UniDiffuser") -> "tuple[Pairs | None, str]":
    """The data and its name: what --data names, a recipe's or a folder; else those that the teacher was trained on.

    Raises:
        ValueError: data that cannot be opened, or were encoded by other codecs than the teacher's.
    """
    from unidiffuser.presets import PRESETS
    from unidiffuser.training.preset import describe

    if args.data in PRESETS:
        return PRESETS[args.data]().pairs, ""
    if args.data:
        from unidiffuser.datasets import open_data

        data = open_data(args.data, seed=args.seed or 0)
        if data.codecs is not None and not same_codecs(data.codecs, teacher.modalities):
            raise ValueError(f"{args.data} was encoded with other codecs than {teacher.name}'s; give the raw data")
        return data.pairs, data.digest
    made_of = teacher.training.get("pairs")
    known = (make() for make in PRESETS.values())
    return next((preset.pairs for preset in known if describe(preset)["pairs"] == made_of), None), ""


def same_codecs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two sets of codecs are the same to the bit."""
    if mine.keys() != theirs.keys():
        return False
    pairs = [(mine[name], theirs[name]) for name in mine]
    return all(
        a.config() == b.config() and all(x.equal(b.state()[name]) for name, x in a.state().items()) for a, b in pairs
    )


def compare(args: argparse.Namespace, terminal: Terminal) -> int:
    """Draw from several models with the same seeds and show the samples side by side, a row a model."""
    import time

    from unidiffuser.cli.outputs import beside
    from unidiffuser.joint import seeds_from
    from unidiffuser.marking import mark_info
    from unidiffuser.pipeline import UniDiffuser
    from unidiffuser.sheet import Cell, sheet

    out = Path(args.out)
    if out.is_dir() or (out.exists() and not args.force):
        raise ValueError(f"{out} is there already; use --force to overwrite it, or another --out")
    models = [UniDiffuser.from_pretrained(name, device=args.device) for name in args.models]
    names = [name for name in models[0].modalities if all(name in model.modalities for model in models)]
    given = flags.given(args, models[0])
    sampled = args.sample or [name for name in names if name not in given]
    for model in models:
        flags.check_names(model, [*sampled, *given])
    seeds = seeds_from(args.seed, args.n or 1)
    rows, answer = [], []
    for place, model in zip(args.models, models, strict=True):
        with terminal.progress(str(place)) as progress:
            started = time.monotonic()
            samples = model.sample(*sampled, n=len(seeds), seed=seeds, on_step=progress, **given)
            seconds = time.monotonic() - started
        shown = {name: model.modalities[name].media_type for name in sampled}
        texts = [" / ".join(str(s[name]) for name in sampled if shown[name] == "text") for s in samples]
        pictures = [next((s[name] for name in sampled if shown[name] == "image"), None) for s in samples]
        title = f"{place}: {model.settings.steps} step{'s' * (model.settings.steps > 1)}, {seconds / len(seeds):.3f} s"
        rows.append((title, [Cell(p, t) for p, t in zip(pictures, texts, strict=True)]))
        about = {"model": model.name, "model_sha256": model.digest, "steps": model.settings.steps}
        answer.append(about | {"seconds": round(seconds, 3)} | ({"texts": texts} if any(texts) else {}))
    with beside(out) as aside:
        sheet(rows).save(aside, format="PNG", pnginfo=mark_info())
    strangers = [m for m in models[1:] if m.critic is not None and teacher_of(m) != models[0].digest]
    for model in strangers:
        terminal.say(f"{model.name} is not a student of {models[0].name} but of {model.training['teacher']['name']}")
    terminal.answer({"sheet": str(out), "seeds": seeds, "sampled": sampled, "rows": answer}, [str(out)])
    return 0


def teacher_of(model: "UniDiffuser") -> str:
    """The sha256 of a student's teacher; empty if it does not say."""
    about = model.training.get("teacher")
    return str(about.get("sha256", "")) if isinstance(about, Mapping) else ""


def distill_flags(parser: Parser) -> None:
    """The flags of distill."""
    parser.add_argument("model", help="the teacher: name of a model in the box, or a folder")
    parser.flag("--run", required=True, metavar="FOLDER", help="checkpoints, metrics, in the end the student: final/")
    parser.flag("--method", metavar="NAME", help="uni-instruct (default), sim, sid, sida, dmd, f-distill, ...")
    parser.flag("--divergence", metavar="NAME", help="forward-kl (default), ...; an unknown name lists them")
    parser.flag("--estimator", help="expanded or integral: the form of the gradient, of one and the same objective")
    parser.flag("--weight", help="of the noise levels; an unknown name lists them")
    parser.flag("--detach-ratio", action="store_true", help="leave out the gradient of the ratio weight, to compare")
    parser.flag("--no-adversarial", action="store_true", help="leave out the adversarial term")
    parser.flag("--data", metavar="DATA", help="a recipe's name or a folder (default: what the teacher was trained on)")
    scale = {"action": "append", "default": [], "metavar": "[NAME=]S"}
    parser.flag(
        "--guidance", **scale, help="of the teacher, which the student learns (default: 0 if a ratio is, else its own)"
    )
    parser.flag("--g", **scale, help="the same in the convention g = s + 1, 1 = off")
    parser.flag("--begin", type=float, metavar="T", help="timestep of the student's input, up to 1 (default: 0.7)")
    whole: dict[str, Any] = {"type": flags.whole, "metavar": "N"}
    parser.flag("--steps", **whole, help="optimiser steps of the student (default: the recipe's)")
    parser.flag("--warmup", **whole, help="steps of the critic alone before that (default: derived)")
    parser.flag("--batch", **whole, help="samples a step (default: the recipe's)")
    parser.flag("--lr", type=float, help="learning rate (default: the recipe's)")
    parser.flag("--save-every", **whole, help="steps between checkpoints (default: derived)")
    parser.flag("--preview-every", **whole, help="steps between one-step previews; 0: none")
    parser.flag("--workers", **whole, help="loader processes; no effect on the result (default: 1)")
    parser.flag("--seed", **whole, help="of order and noise (default: 0)")
    flags.add_device(parser)


def compare_flags(parser: Parser) -> None:
    """The flags of compare."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names of models in the box, or folders")
    flags.add_given(parser)
    named = {"action": "append", "default": [], "metavar": "NAME"}
    parser.flag("--sample", **named, help="what to sample, may be repeated (default: all that is not given)")
    parser.flag("-n", type=flags.whole, metavar="N", help="how many samples of each (default: 1)")
    parser.flag("--seed", type=flags.whole, help="of the first sample (default: random, and told)")
    parser.flag("--out", required=True, metavar="FILE", help="the sheet, a PNG")
    parser.flag("--force", action="store_true", help="overwrite it if it is there")
    flags.add_device(parser)

"""What a job asks of a model: its values read, its settings decided, its cost.

A job is plain values (`JobBody.plain`). It draws nothing and knows no threads, no process and no HTTP.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from PIL.Image import Image

from unidiffuser.checkpoints import Settings
from unidiffuser.modalities.image import open_picture
from unidiffuser.modalities.text import BLANK
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.request import Request
from unidiffuser.reuse import Reuse
from unidiffuser.server import wire
from unidiffuser.solvers import SOLVERS

SCORE_BATCH = 8
"""Noise draws of a score in one forward: few, so that others need not wait for long."""
MAX_MASK = 1024
INTERPOLATION_STEPS = 16
"""Of an interpolation that does not say."""
HEUN, ROUNDS = 2, 5
"""Evaluations a step of an interpolation; how often a step is taken where something is known in part."""


def request_of(model: UniDiffuser, plain: Mapping[str, Any]) -> Request:
    """A checked job that samples, as the call of the library that it is."""
    settings = settings_of(model, plain)
    return Request(
        names=tuple(plain["names"]),
        given=read_all(sized_for(model, plain["size"]), plain["given"]),
        n=plain["n"],
        seed=plain["seed"],
        steps=settings.steps,
        solver=settings.solver,
        guidance=settings.guidance,
        looseness=plain["looseness"],
        masks={name: read_mask(name, value) for name, value in plain["masks"].items()},
        path=plain["path"],
        label=settings.label,
        reuse=settings.reuse,
        size=(plain["size"][0], plain["size"][1]) if plain["size"] else None,
    )


def settings_of(model: UniDiffuser, plain: Mapping[str, Any]) -> Settings:
    """The model's settings with what a job chose.

    Raises:
        ValueError: what the model does not have.
    """
    reuse = Reuse(**plain["reuse"]) if plain["reuse"] else None
    settings = model.choose(plain["steps"], plain["solver"], plain["guidance"], plain["label"], reuse)
    low_high, against = plain["guidance_interval"], plain["guidance_against"]
    guidance = settings.guidance
    if low_high is not None:
        guidance = replace(guidance, interval=tuple(low_high))
    if against is not None:
        guidance = replace(guidance, against=against)
    return replace(settings, guidance=guidance)


def read_all(model: UniDiffuser, values: Mapping[str, Any]) -> dict[str, Any]:
    """Modality -> checked raw value; a sentence with holes stays as it is, its codec reads it with its role."""
    raws = {}
    for name, value in values.items():
        codec = model.codecs[name]
        if codec.media_type == "text" and isinstance(value, str) and BLANK in value:
            codec.part(value)  # raises what is wrong with it
            raws[name] = value
        else:
            raws[name] = wire.read(name, codec, value)
    return raws


def read_mask(name: str, value: Any) -> Image:
    """The mask of a modality: a black and white picture of bearable size, white where it is to be made.

    A mask with transparent places says it by them, as the OpenAI API has it: they are what is to be made.
    """
    picture = open_picture(wire.file_bytes(name, value), f"given as the mask of {name!r}")
    if max(picture.size) > MAX_MASK:
        raise ValueError(f"the mask of {name!r} is {picture.width} x {picture.height}; at most {MAX_MASK} a side")
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        clear = alpha.point(lambda a: 255 * (a < 128))
        if clear.getbbox():
            return clear
    return picture.convert("L")


def decided(model: UniDiffuser, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What a job leaves to the model, said: so that it is the same job when it is made again.

    Raises:
        ValueError: settings that the model does not have.
    """
    if plain["verb"] == "interpolate":
        return {"steps": plain["steps"] or INTERPOLATION_STEPS}
    if plain["verb"] == "score":
        return {}
    settings = settings_of(model, plain)
    chosen = {"steps": settings.steps, "solver": settings.solver, "label": settings.label}
    return chosen | {"reuse": asdict(settings.reuse) if settings.reuse else None}


def cost(model: UniDiffuser, plain: Mapping[str, Any]) -> int:
    """Rows that the network will see: samples x steps x evaluations a step x branches of guidance x rounds.

    A row of larger pictures counts as the rows of the model's own size that have as many pixels.
    """
    if plain["verb"] == "score":
        return 2 * int(plain["draws"])
    if plain["verb"] == "interpolate":
        return HEUN * int(plain["steps"]) * (2 + int(plain["frames"]))
    settings = settings_of(model, plain)
    guided = [m for m in plain["names"] if settings.guidance.scale_of(m) > 0]
    links = len(plain["names"]) if plain["verb"] == "chain" else 1
    branches = 1 + (len(guided) if plain["verb"] == "sample" else bool(guided))
    partly = any(m in plain["given"] and m not in plain["looseness"] for m in plain["names"])
    rounds = ROUNDS if plain["verb"] == "sample" and partly else 1
    rows = int(plain["n"]) * settings.steps * SOLVERS[settings.solver].evaluations * branches * rounds * links
    return math.ceil(rows * _enlarged(model, plain["size"]))


def _enlarged(model: UniDiffuser, size: Sequence[int] | None) -> float:
    """How many times as many pixels as the model's own pictures these have; never below 1."""
    own = next((found for codec in model.modalities.values() if (found := size_of(codec))), None)
    return max(1.0, math.prod(size) / math.prod(own)) if size and own else 1.0


def size_of(codec: Any) -> list[int] | None:
    """Width and height of a codec's pictures; None if it makes none."""
    if codec.media_type != "image":
        return None
    return [codec.size, codec.size] if isinstance(codec.size, int) else list(codec.size)


def sized_for(model: UniDiffuser, size: Sequence[int] | None) -> UniDiffuser:
    """The model for pictures of a size, if one is asked for; ValueError if it makes none of this size."""
    return model.resized(*size) if size else model


def evaluations(plain: Mapping[str, Any]) -> int:
    """How often a job that is not counted in steps asks the network."""
    if plain["verb"] == "score":
        return -(-int(plain["draws"]) // SCORE_BATCH)
    return HEUN * int(plain["steps"]) * (2 + int(plain["frames"])) - int(plain["frames"])

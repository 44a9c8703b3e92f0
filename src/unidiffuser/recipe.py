"""The recipe: what a written picture says of itself, so that it can be made again to the pixel.

A recipe names the model by its hash, what was sampled, what was given, the seed, and every setting. Given texts and
numbers stand in it as they are; given pictures as the PNG the model saw, if it is small, else by their hash alone.
A PNG carries it four times:

    "unidiffuser"            iTXt, JSON: the recipe, at most 64 KB
    "parameters"             the line that other tools show
    "Software"               who wrote it
    "XML:com.adobe.xmp"      the mark of synthetic pictures (`marking`)

Read back, a recipe is what a stranger wrote: every field is checked, and no path or address in it is ever followed.
This file knows no model; it does not sample.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from unidiffuser.codecs import Latent
from unidiffuser.marking import mark_info
from unidiffuser.modalities.image import open_picture

FORMAT = 1
KEY = "unidiffuser"
MAX_RECIPE = 64 * 1024
MAX_PICTURE = 48 * 1024
MAX_FILE = 64 * 2**20
MAX_TEXT = 20_000
MAX_NUMBERS = 4096
DTYPES = ("float32", "bfloat16", "float16", "int8")
Picture = PIL.Image.Image


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that one sample depends on."""

    model: str
    """The model's name, for the reader."""
    model_sha256: str
    """The model's hash; "" for a model that never was a file."""
    library: str
    """The version of unidiffuser that made it."""
    sampled: tuple[str, ...]
    """The modalities that were sampled."""
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Modality -> {"text": ..., "sha256" of its latent if that was given}, {"numbers": [...]} or {"sha256": ..., "png":
    base64, absent if it is too large}."""
    masks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Modality given in part -> its mask, a picture like a given one."""
    seed: int
    """The sample's own seed."""
    steps: int
    """Solver steps."""
    solver: str
    """The solver."""
    guidance: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `guidance.Guidance`."""
    looseness: Mapping[str, float] = field(default_factory=dict)
    """Given modality -> the timestep it was held at, or from which its sample started."""
    path: Mapping[str, list[float]] = field(default_factory=dict)
    """Sampled modality -> its own timesteps."""
    label: int = 0
    """The global label, for models that have one."""
    size: tuple[int, ...] = ()
    """Width and height of the pictures, where they were asked for."""
    reuse: Mapping[str, int] = field(default_factory=dict)
    """The fields of `reuse.Reuse`; empty where every block was computed."""
    dtype: str = "float32"
    """The numbers of the large parts."""
    pixels: str = ""
    """The `fingerprint` of the picture that carries this recipe, before any words were drawn into it."""


def fingerprint(picture: Picture) -> str:
    """sha256 over mode, size and pixels."""
    head = f"{picture.mode} {picture.width}x{picture.height} ".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def given_entry(media_type: str, raw: Any) -> dict[str, Any]:
    """What a recipe keeps of a given raw value, or of latents: their hash, and what they say if that is text."""
    if isinstance(raw, Latent):
        tensors = b"".join(raw.streams[stream].float().numpy().tobytes() for stream in sorted(raw.streams))
        words = {"text": raw.raw} if media_type == "text" else {}
        return {**words, "sha256": hashlib.sha256(tensors).hexdigest()}
    if media_type == "text":
        return {"text": raw}
    if media_type == "image":
        buffer = io.BytesIO()
        raw.save(buffer, format="PNG", optimize=True)
        png = base64.b64encode(buffer.getvalue()).decode()
        return {"sha256": fingerprint(raw)} | ({"png": png} if len(png) <= MAX_PICTURE else {})
    if media_type == "vector" and raw.size <= MAX_NUMBERS:
        return {"numbers": [float(x) for x in raw]}
    return {"sha256": hashlib.sha256(raw.tobytes()).hexdigest()}


def given_value(name: str, entry: Mapping[str, Any]) -> Any:
    """The raw value that a recipe keeps; ValueError if it keeps only the hash."""
    if "text" in entry and "sha256" in entry:
        raise ValueError(
            f"the given {name!r} was a link of a chain, of whose latent the recipe keeps only the hash; run the chain "
            f"again, or give its words (--{name})"
        )
    if "text" in entry:
        return entry["text"]
    if "numbers" in entry:
        return entry["numbers"]
    if "png" not in entry:
        raise ValueError(
            f"the recipe keeps only the hash of the given {name!r}, which was too large; give it again (--{name})"
        )
    picture = open_picture(base64.b64decode(entry["png"]), f"of the given {name!r} in the recipe")
    if fingerprint(picture) != entry["sha256"]:
        raise ValueError(f"the given {name!r} in the recipe is damaged; give it again with --{name}")
    return picture


def png_info(recipe: Recipe) -> PngInfo:
    """The text chunks of a PNG with this recipe."""
    text = json.dumps({"format": FORMAT, **asdict(recipe)}, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_RECIPE:
        text = json.dumps({"format": FORMAT, **asdict(_without_pictures(recipe))}, ensure_ascii=False, allow_nan=False)
    info = mark_info()
    info.add_itxt(KEY, text)
    info.add_itxt("parameters", parameters_line(recipe))
    info.add_itxt("Software", f"unidiffuser {recipe.library}")
    return info


def parameters_line(recipe: Recipe) -> str:
    """The recipe as other tools show it: the text, then one line of settings."""
    text = " / ".join(entry["text"] for entry in recipe.given.values() if "text" in entry)
    settings = {
        "Steps": recipe.steps,
        "Sampler": recipe.solver,
        "Guidance": json.dumps(recipe.guidance.get("scale", 0.0)).replace('"', ""),
        "Seed": recipe.seed,
        "Sampled": " + ".join(recipe.sampled),
        "Model": recipe.model,
        "Model hash": recipe.model_sha256[:10],
        "Version": f"unidiffuser {recipe.library}",
    }
    return f"{text}\n" * bool(text) + ", ".join(f"{key}: {value}" for key, value in settings.items())


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a PNG.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no whole picture, has no recipe, or has one that is not of our making.
    """
    with open(path, "rb") as file:
        picture = open_picture(file.read(MAX_FILE + 1), str(path))
    text = picture.info.get(KEY)
    if not isinstance(text, str):
        raise ValueError(f"{path} carries no recipe; only pictures written by unidiffuser without --no-metadata do")
    try:
        return recipe_from(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the recipe in {path} cannot be used: {error}") from error


def _without_pictures(recipe: Recipe) -> Recipe:
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    for part in ("given", "masks"):
        values[part] = {name: {k: v for k, v in e.items() if k != "png"} for name, e in values[part].items()}
    return Recipe(**values)


def recipe_from(text: str) -> Recipe:
    """The recipe in a hostile JSON text; ValueError names the first field that is wrong."""
    if len(text.encode(errors="replace")) > MAX_RECIPE:
        raise ValueError(f"it is longer than {MAX_RECIPE} bytes")
    try:
        values = json.loads(text, parse_constant=lambda constant: math.nan)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}; perhaps a newer unidiffuser wrote it")
    if set(values) != {f.name for f in fields(Recipe)}:
        raise ValueError(f"it has other fields than {', '.join(f.name for f in fields(Recipe))}")
    for name, good in CHECKS.items():
        if not good(values[name]):
            raise ValueError(f"its {name!r} is not what it should be")
    return Recipe(**values | {"sampled": tuple(values["sampled"]), "size": tuple(values["size"])})


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and (value == "" or (len(value) == 64 and set(value) <= set("0123456789abcdef")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_entry(entry: Any) -> bool:
    """One of the forms that `given_entry` makes."""
    match entry:
        case {"text": str(text), **rest}:
            hashed = set(rest) == {"sha256"} and _is_hash(rest["sha256"])
            return (not rest or hashed) and len(text) <= MAX_TEXT
        case {"numbers": list(numbers), **rest}:
            return not rest and len(numbers) <= MAX_NUMBERS and all(map(_is_number, numbers))
        case {"sha256": sha, "png": str(png), **rest}:
            return not rest and _is_hash(sha) and len(png) <= MAX_PICTURE and _is_base64(png)
        case {"sha256": sha, **rest}:
            return not rest and _is_hash(sha)
    return False


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _are_entries(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 100 and all(_is_word(k) and _is_entry(v) for k, v in value.items())


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, dict) and len(value) <= 100 and all(_is_word(k) and _is_number(v) for k, v in value.items())
    )


def _are_paths(value: Any) -> bool:
    paths = value.values() if isinstance(value, dict) and len(value) <= 100 else [None]
    return all(isinstance(path, list) and len(path) <= 1001 and all(map(_is_number, path)) for path in paths) and all(
        map(_is_word, value)
    )


def _is_guidance(value: Any) -> bool:
    match value:
        case {"scale": scale, "interval": [low, high], "against": against, **rest}:
            numbers = _is_number(scale) or _are_numbers(scale)
            return not rest and numbers and _is_number(low) and _is_number(high) and _is_word(against)
    return False


def _is_reuse(value: Any) -> bool:
    match value:
        case {"every": every, "outer": outer, **rest}:
            return not rest and _is_whole(every) and _is_whole(outer)
    return bool(value == {})


CHECKS = {
    "model": _is_word,
    "model_sha256": _is_hash,
    "library": _is_word,
    "sampled": lambda value: isinstance(value, list) and 0 < len(value) <= 100 and all(map(_is_word, value)),
    "given": _are_entries,
    "masks": _are_entries,
    "seed": _is_whole,
    "steps": _is_whole,
    "solver": _is_word,
    "guidance": _is_guidance,
    "looseness": _are_numbers,
    "path": _are_paths,
    "label": _is_whole,
    "size": lambda value: isinstance(value, list) and len(value) in (0, 2) and all(map(_is_whole, value)),
    "reuse": _is_reuse,
    "dtype": lambda value: value in DTYPES,
    "pixels": _is_hash,
}
"""Field of a recipe -> whether a value from a stranger may stand in it."""

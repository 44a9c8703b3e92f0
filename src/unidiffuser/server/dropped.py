"""What a dropped picture says of how it was made: ours in full, other tools' as far as their prompt.

    unidiffuser    "unidiffuser"           JSON, a recipe: everything, to the pixel
    A1111, SD.Next "parameters"            text: the prompt, then "Negative prompt:", then a line of settings
    SwarmUI        "parameters"            JSON: sui_image_params.prompt
    Fooocus        "parameters"            JSON: prompt
    ComfyUI        "prompt"                JSON, a graph: the longest text of its nodes
    InvokeAI       "invokeai_metadata"     JSON: positive_prompt

All of it is what a stranger wrote: it is read as data, cut to a bearable length, and nothing in it is followed.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from unidiffuser.modalities.image import open_picture
from unidiffuser.recipe import KEY, Recipe, recipe_from
from unidiffuser.server.wire import file_bytes

MAX_PROMPT = 2000
MAX_READ = 2**20


def read(image: str, models: Mapping[str, str]) -> dict[str, Any]:
    """What the picture in a data URL says.

    Args:
        image: the data URL.
        models: sha256 -> name of the models that are loaded.

    Returns:
        "tool": who made it, or None; "job": of our own, what makes it again, and "pixels", the hash it should have;
        "prompt": another tool's; "note": what could not be understood, in a sentence.

    Raises:
        ValueError: it is no whole picture.
    """
    picture = open_picture(file_bytes("image", image), "dropped")
    info = {key: value for key, value in picture.info.items() if isinstance(value, str) and len(value) <= MAX_READ}
    if KEY in info:
        try:
            recipe = recipe_from(info[KEY])
        except (ValueError, RecursionError) as error:
            return {"tool": KEY, "job": None, "note": f"its recipe cannot be used: {error}"}
        return {"tool": KEY, **_as_job(recipe, models)}
    for tool, key, find in READERS:
        if key in info and (prompt := find(info[key])):
            return {"tool": tool, "prompt": prompt[:MAX_PROMPT], "note": "only its prompt can be used here"}
    return {"tool": None, "note": "this picture says nothing of how it was made"}


def _as_job(recipe: Recipe, models: Mapping[str, str]) -> dict[str, Any]:
    """The job that makes the sample of a recipe again, with what is in the way of it."""
    entries = {**recipe.given, **recipe.masks}
    lost = [name for name, entry in entries.items() if set(entry) == {"sha256"}]
    notes = [f"it holds only the hash of the given {name!r}; give it again" for name in lost]
    if recipe.model_sha256 not in models:
        notes.append(
            f"it was made by the model {recipe.model!r} ({recipe.model_sha256[:10]}), which is not loaded here"
        )
    if recipe.dtype != "float32":
        notes.append(f"it was made in {recipe.dtype}, and this server computes in float32; it will differ")
    job = {
        "model": models.get(recipe.model_sha256),
        "names": list(recipe.sampled),
        "given": {name: _value(entry) for name, entry in recipe.given.items() if name not in lost},
        "masks": {name: _value(entry) for name, entry in recipe.masks.items() if name not in lost},
        "seed": recipe.seed,
        "steps": recipe.steps,
        "solver": recipe.solver,
        "guidance": recipe.guidance.get("scale"),
        "guidance_interval": recipe.guidance.get("interval"),
        "guidance_against": recipe.guidance.get("against"),
        "label": recipe.label,
        "reuse": dict(recipe.reuse) or None,
        "size": list(recipe.size) or None,
        "looseness": dict(recipe.looseness),
        "path": dict(recipe.path),
    }
    return {"job": job, "pixels": recipe.pixels, "note": "; ".join(notes)}


def _value(entry: Mapping[str, Any]) -> Any:
    """A given value as a client sends it."""
    if "png" in entry:
        return f"data:image/png;base64,{entry['png']}"
    return entry.get("text", entry.get("numbers"))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _field(*names: str) -> Any:
    """A reader of one text field, deep in a JSON object."""

    def find(text: str) -> str | None:
        value = _json(text)
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value.strip() if isinstance(value, str) else None

    return find


def _a1111(text: str) -> str | None:
    """The text before its first line of settings."""
    if text.lstrip().startswith("{"):
        return None
    return re.split(r"\n(?:Negative prompt:|Steps: )", text, maxsplit=1)[0].strip() or None


def _comfy(text: str) -> str | None:
    """The longest text that a node of the graph holds."""
    graph = _json(text)
    nodes = graph.values() if isinstance(graph, Mapping) else []
    inputs = [node["inputs"] for node in nodes if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)]
    texts = [each["text"] for each in inputs if isinstance(each.get("text"), str)]
    return max(texts, key=len, default=None)


READERS = (
    ("SwarmUI", "parameters", _field("sui_image_params", "prompt")),
    ("Fooocus", "parameters", _field("prompt")),
    ("A1111", "parameters", _a1111),
    ("InvokeAI", "invokeai_metadata", _field("positive_prompt")),
    ("ComfyUI", "prompt", _comfy),
)
"""(tool, key of the text chunk, how to find the prompt in it), the first that finds one counts."""

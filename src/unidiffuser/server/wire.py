"""Raw values as JSON and back, by media type: what travels between web and worker, and from and to clients.

    text      the sentence itself
    vector    a list of numbers
    others    {"type": "image/png", "data": base64}      a file as its codec writes and reads it

From a client a file comes as a data URL, "data:image/png;base64,..."; no other URL is accepted and none is ever
opened. What a client sent is checked by the codec, so that what is kept is as small and as plain as the model sees it:
a picture upright, of the model's size, without its metadata.
"""

import base64
import binascii
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL.Image import Image

from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import open_picture
from unidiffuser.recipe import Recipe, png_info

TYPES = {".png": "image/png", ".wav": "audio/wav", ".json": "application/json", ".txt": "text/plain"}
MAX_URL = 24 * 2**20


def read(name: str, codec: Modality[Any], value: Any) -> Any:
    """The checked raw value of a modality that a client gave.

    Raises:
        ValueError: not what its media type takes, or refused by the codec.
    """
    if codec.media_type in ("text", "vector"):
        return codec.check(value)
    data = file_bytes(name, value)
    if codec.media_type == "image":
        return codec.check(open_picture(data, f"given as {name!r}"))
    with tempfile.TemporaryDirectory(prefix="unidiffuser-") as folder:
        path = Path(folder) / f"given{codec.suffix}"
        path.write_bytes(data)
        try:
            return codec.read(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), f"given as {name!r}")) from error


def file_bytes(name: str, value: Any) -> bytes:
    """The bytes of a data URL, or of a file that `write` made.

    Raises:
        ValueError: neither, too long, or no base64; the length is looked at before anything is decoded.
    """
    if isinstance(value, dict):
        encoded = value.get("data")
    elif isinstance(value, str) and value.startswith("data:"):
        head, comma, encoded = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"the data URL of {name!r} must be of the form data:image/png;base64,...")
    else:
        raise ValueError(f"{name!r} must be a data URL (data:image/png;base64,...); other addresses are not opened")
    if not isinstance(encoded, str) or len(encoded) > MAX_URL:
        raise ValueError(f"the data of {name!r} must be base64 of at most {MAX_URL} characters")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data of {name!r} is not valid base64") from error


def write(codec: Modality[Any], raw: Any, recipe: Recipe | None = None) -> Any:
    """A raw value as JSON; a picture carries its recipe."""
    if codec.media_type == "text":
        return raw
    if codec.media_type == "vector":
        return [float(number) for number in raw]
    if codec.media_type == "image":
        return picture(raw, recipe)
    with tempfile.TemporaryDirectory(prefix="unidiffuser-") as folder:
        path = Path(folder) / f"value{codec.suffix}"
        codec.write(raw, path)
        data = path.read_bytes()
    kind = TYPES.get(codec.suffix, "application/octet-stream")
    return {"type": kind, "data": base64.b64encode(data).decode()}


def picture(raw: Image, recipe: Recipe | None = None) -> dict[str, str]:
    """A picture as JSON: a PNG, with its recipe if there is one."""
    buffer = io.BytesIO()
    raw.save(buffer, format="PNG", pnginfo=png_info(recipe) if recipe else None)
    return {"type": "image/png", "data": base64.b64encode(buffer.getvalue()).decode()}

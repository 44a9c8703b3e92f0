"""Small things that the OpenAI API needs: picture formats, events as text."""

import io
import json
from typing import Any

from PIL import Image

from unidiffuser.marking import PACKET

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def as_format(data: bytes, name: str, quality: int | None) -> bytes:
    """Our PNG in another format, marked as synthetic; quality: 0 to 100. A PNG stays as it is, with its recipe."""
    if name == "png":
        return data
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        picture.convert("RGB").save(buffer, FORMATS[name], quality=95 if quality is None else quality, xmp=PACKET)
    return buffer.getvalue()


def sse(name: str | None, data: dict[str, Any]) -> str:
    """One server-sent event; its type also stands in the data, where OpenAI's clients look."""
    body = {"type": name, **data} if name else data
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(body, allow_nan=False)}\n\n"

"""A job as a moving picture: what it made, one after the other, as a GIF.

    sample         a sample settling out of noise: its previews, as long as they are kept, and what came of it
    chain          the links of one chain
    interpolate    the frames

Under each picture stand the words that belong to it. All of it was made here; nothing that a client sent is opened.
"""

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from unidiffuser.marking import SOURCE_TYPE
from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.store import Row

Values = Mapping[str, Any]

LEAST, MOST = 256, 512
"""Pixels across."""
LETTERS, LINES, RIM = 15, 3, 12
"""Pixels of the letters; lines of words at most; pixels around them."""
PAPER, INK = "#fffefb", "#23252b"
FAST, SLOW, LAST = 90, 900, 1800
"""Milliseconds of a preview, of a link or frame, and of the last."""


async def film(hub: Hub, row: Row, sample: int) -> bytes:
    """The GIF of a job that is done; `sample` is the sample, or the chain.

    Raises:
        TurnedAwayError: 409, there is nothing to show.
    """
    if row.state != "done" or row.result is None:
        raise TurnedAwayError(409, f"this job is {row.state} and has no film", "no_film")
    shots = _shots(hub, row, row.result["samples"], sample)
    pictures = [await _picture(hub, row, values) for values in shots]
    words = [next((value for value in values.values() if isinstance(value, str)), "") for values in shots]
    if len(shots) < 2 or not (any(pictures) or any(words)):
        raise TurnedAwayError(
            409,
            "there is no film of this: it takes a chain, an interpolation, or one of the first samples of a recent job "
            "with previews",
            "no_film",
        )
    each = FAST if row.verb == "sample" else SLOW
    return await asyncio.to_thread(drawn, pictures, words, each)


def _shots(hub: Hub, row: Row, samples: Sequence[Mapping[str, Any]], k: int) -> list[Values]:
    """The values to show, in order."""
    if row.verb == "chain":
        return [one["values"] for one in sorted(samples, key=lambda one: int(one["link"])) if one["chain"] == k]
    if row.verb == "interpolate":
        return [one["values"] for one in samples]
    log = hub.work.log(row.id)
    told = [event.data["samples"] for event in log.after(0) if event.name == "preview"] if log else []
    shown = [values[k] for values in told if k < len(values)]
    return [*shown, samples[k]["values"]] if shown and k < len(samples) else []


async def _picture(hub: Hub, row: Row, values: Values) -> bytes | None:
    """The PNG among the values, if there is one."""
    value = next((v for v in values.values() if isinstance(v, dict) and v["type"] == "image/png"), None)
    if value is None or "data" in value:
        return base64.b64decode(value["data"]) if value else None
    place = await hub.file(row.id, value["url"].rpartition("/")[2])
    return await hub.bytes_of(place) if place else None


def drawn(pictures: Sequence[bytes | None], words: Sequence[str], milliseconds: int) -> bytes:
    """A GIF that goes round for ever.

    Args:
        pictures: PNGs; where there is none the one before stays.
        words: what stands under each.
        milliseconds: of each but the last, which stays longer.
    """
    frames: list[Image.Image] = []
    shown: Image.Image | None = None
    for data, text in zip(pictures, words, strict=True):
        if data is not None:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
                shown = _fitted(opened.convert("RGB"))
        frames.append(_frame(shown, text, any(words)))
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    whole = [_padded(frame, size) for frame in frames]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(whole) - 1) + [LAST]
    options: dict[str, Any] = {"save_all": True, "append_images": whole[1:], "duration": durations, "loop": 0}
    whole[0].save(buffer, "GIF", comment=SOURCE_TYPE.encode(), **options)
    return buffer.getvalue()


def _fitted(picture: Image.Image) -> Image.Image:
    """Between the least and the most pixels across."""
    width = min(max(picture.width, LEAST), MOST)
    if width == picture.width:
        return picture
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BICUBIC)


def _frame(picture: Image.Image | None, text: str, band: bool) -> Image.Image:
    """A picture with room for words under it, if there are any in the film."""
    width, top = picture.size if picture else (LEAST, 0)
    height = top + (LINES * (LETTERS + 5) + 2 * RIM if band else 0)
    frame = Image.new("RGB", (width, max(height, 1)), PAPER)
    if picture:
        frame.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(LETTERS)
    for k, line in enumerate(_lines(draw, font, text, width - 2 * RIM)):
        draw.text((RIM, top + RIM + k * (LETTERS + 5)), line, INK, font)
    return frame


def _padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As large as all others: the first links of a chain may have no picture yet. Words stay at the bottom."""
    if frame.size == size:
        return frame
    whole = Image.new("RGB", size, PAPER)
    whole.paste(frame, (0, size[1] - frame.height))
    return whole


def _lines(draw: ImageDraw.ImageDraw, font: Any, text: str, width: int) -> list[str]:
    """Words in lines that fit; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text[:400].split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1] + " …"]

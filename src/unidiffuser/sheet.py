"""A sheet: rows of pictures with what is said of them, as one picture. It knows no model."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 128
"""Pixels of a cell; smaller pictures are enlarged by whole numbers, so that every pixel stays a square."""
MARGIN = 8
LINE = 14
SIGNS = 20
"""Letters in a line of a cell."""


@dataclass(frozen=True)
class Cell:
    """A picture, a text, or both."""

    picture: Image.Image | None = None
    text: str = ""


def sheet(rows: Sequence[tuple[str, Sequence[Cell]]]) -> Image.Image:
    """Rows of (title, cells) as a picture on white; the rows may differ in length."""
    width = MARGIN + max((len(cells) for _, cells in rows), default=1) * (SIDE + MARGIN)
    heights = [LINE + MARGIN + max((_height(cell) for cell in cells), default=0) + MARGIN for _, cells in rows]
    canvas = Image.new("RGB", (width, MARGIN + sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LINE - 3)
    top = MARGIN
    for (title, cells), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top), title, "black", font)
        for k, cell in enumerate(cells):
            left, below = MARGIN + k * (SIDE + MARGIN), top + LINE + MARGIN
            if cell.picture is not None:
                picture = enlarged(cell.picture)
                canvas.paste(picture.convert("RGB"), (left, below))
                draw.rectangle((left - 1, below - 1, left + picture.width, below + picture.height), outline="#bbbbbb")
                below += picture.height + 2
            for line in _lines(cell):
                draw.text((left, below), line, "#333333", font)
                below += LINE
        top += height
    return canvas


def enlarged(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture with its longer side about `side`: a small one by a whole factor, a large one resampled."""
    longer = max(picture.size)
    if longer > side:
        return picture.resize((max(1, picture.width * side // longer), max(1, picture.height * side // longer)))
    factor = side // longer
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _lines(cell: Cell) -> list[str]:
    return textwrap.wrap(cell.text, SIGNS)


def _height(cell: Cell) -> int:
    picture = 0 if cell.picture is None else enlarged(cell.picture).height + 2
    return picture + LINE * len(_lines(cell))

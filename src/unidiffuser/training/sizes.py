"""One dial for the size of a network: a name or a number of parameters -> width, depth, heads, rate, batch.

A U-ViT of width d and depth L has about d^2 (13 L + 12) parameters in its L + 1 blocks (12 d^2 each, and a skip of
2 d^2 in half of them). Width and depth grow together, from 192 x 8 to the 1536 x 30 of the released UniDiffuser; heads
have 64 numbers (32 in the smallest). The peak rate falls with the fourth root of the size, from 1e-3 at 4 million to
the paper's 2e-4 or so at a billion.
"""

import math
from dataclasses import dataclass
from itertools import product

NAMES = {"tiny": 4e6, "small": 16e6, "base": 58e6, "large": 285e6, "huge": 950e6}
"""What the dial's names stand for, in parameters."""
LEAST, MOST = 1e6, 1.5e9
SHAPES = ((192, 8), (1536, 30))
"""(width, depth) at the two ends of the dial."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the dial sets."""

    parameters: float
    """About so many, in the blocks."""
    dim: int
    depth: int
    heads: int
    lr: float
    batch: int
    """A step's samples unless told otherwise."""
    steps: int
    """Steps of a whole run unless told otherwise."""


def size_of(text: str) -> Size:
    """The size for a name of `NAMES` or a number such as 30M, 1e7 or 0.5B.

    Raises:
        ValueError: it is neither, or out of range.
    """
    wanted = NAMES.get(text) or _number(text)
    dim, depth = min(_candidates(), key=lambda shape: _misfit(shape, wanted))
    decades = math.log10(wanted / NAMES["tiny"])
    return Size(
        parameters=parameters(dim, depth),
        dim=dim,
        depth=depth,
        heads=dim // (64 if dim >= 192 else 32),
        lr=float(f"{1e-3 * 10 ** (-decades / 4):.1g}"),
        batch=int(32 * 2 ** max(0, round(2 * decades))),
        steps=int(20_000 * 2 ** max(0, round(1.7 * decades))),
    )


def parameters(dim: int, depth: int) -> float:
    """The parameters of the blocks."""
    return dim**2 * (13 * depth + 12)


def _candidates() -> list[tuple[int, int]]:
    return list(product(range(64, 2049, 64), range(2, 41, 2)))


def _misfit(shape: tuple[int, int], wanted: float) -> float:
    """How far a shape is from the size that is wanted, and from the line on which width and depth grow together."""
    (d0, l0), (d1, l1) = SHAPES
    line = l0 + (l1 - l0) * math.log(shape[0] / d0) / math.log(d1 / d0)
    return 10 * abs(math.log(parameters(*shape) / wanted)) + abs(shape[1] - line) / 8


def _number(text: str) -> float:
    units = {"k": 1e3, "m": 1e6, "b": 1e9}
    digits, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1.0)
    try:
        value = float(digits) * unit
    except ValueError:
        value = math.nan
    if not LEAST <= value <= MOST:
        raise ValueError(
            f"--size is {text!r}; give one of {', '.join(NAMES)}, or a number of parameters from 1M to 1.5B"
        )
    return value

"""How a report writes a number down: with its error or its interval, and beside it what truth would get.

    {"value": 0.93, "low": 0.89, "high": 0.96, "truth": 0.99}         a rate and its 95 % interval
    {"value": 12.1, "error": 0.4, "truth": 3.0}                       a statistic and its standard error

A number that is not known is None, so that every report is JSON.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from unidiffuser.metrics import proportion

Number = dict[str, float | None]


def statistic(found: Iterable[tuple[str, float]], truth: float | None = None) -> Number:
    """A metric's "value" and "error" and whatever else it yields."""
    return _known(dict(found), truth)


def rate(hits: int, n: int, truth: float | None = None) -> Number:
    """hits of n."""
    found = dict(proportion(hits, n))
    return _known({"value": found["rate"], "low": found["low"], "high": found["high"], "n": n}, truth)


def mean(values: Sequence[float], truth: float | None = None) -> Number:
    """The mean of independent values, and its standard error."""
    x = np.asarray(values, np.float64)
    error = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return _known({"value": float(x.mean()), "error": error, "n": len(x)}, truth)


def _known(found: Mapping[str, float], truth: float | None) -> Number:
    numbers = dict(found) | ({} if truth is None else {"truth": truth})
    return {name: x if math.isfinite(x) else None for name, x in numbers.items()}


def shown(name: str, number: Mapping[str, Any]) -> str:
    """A number in words."""
    if number.get("value") is None:
        return f"{name} unknown"
    if "low" in number:
        text = f"{name} {100 * number['value']:.1f} % ({100 * number['low']:.1f} to {100 * number['high']:.1f})"
        return text + (f", truth {100 * number['truth']:.1f} %" if number.get("truth") is not None else "")
    text = f"{name} {number['value']:.4g}"
    text += f" ± {number['error']:.2g}" if number.get("error") is not None else ""
    text += f", p {number['p']:.3g}" if number.get("p") is not None else ""
    return text + (f", truth {number['truth']:.4g}" if number.get("truth") is not None else "")


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `sample` as JSON can hold them."""
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in settings.items()
    }

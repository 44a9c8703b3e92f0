"""Numbers that judge samples: a metric is a generator of (name, value), so that `dict(metric(...))` is a report.

    proportion       how often, with the 95 % interval of Wilson (1927, eq. 6): for k hits of n and z = 1.96 it is
                     (k + z^2/2) / (n + z^2)  +-  z / (n + z^2) sqrt(k (n - k) / n + z^2 / 4),
                     inside [0, 1] and honest at 0 and n hits, where the usual +- z sqrt(p (1 - p) / n) has no width
    total_variation  how far counts are from a law, 1/2 sum_v |k_v / n - p_v|, for each kind of fact and the worst
    separation       how well scores tell two kinds of pairs apart: the area under the ROC curve (DeLong et al. 1988)

The distances of two samples of vectors, FID among them, are in `distances`. This file knows numbers only: no models,
pictures or sentences.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Z95 = 1.959964
"""The 97.5 % point of the standard normal distribution."""

Law = Mapping[str, Mapping[str, float]]
"""Kind of fact -> value -> probability; the probabilities of a kind sum to 1."""

Counts = Mapping[str, Mapping[str, int]]
"""Kind of fact -> value -> how often it was seen."""


def proportion(hits: int, n: int) -> Iterator[tuple[str, float]]:
    """Yield the rate hits / n, "low" and "high" of its 95 % interval, and n; for n = 0 no rate (NaN) and [0, 1]."""
    if not 0 <= hits <= n:
        raise ValueError(f"hits must lie between 0 and the number of trials, but {hits} of {n} were given")
    centre = (hits + Z95**2 / 2) / (n + Z95**2)
    spread = Z95 / (n + Z95**2) * math.sqrt((hits * (n - hits) / n if n else 0.0) + Z95**2 / 4)
    yield "rate", hits / n if n else math.nan
    yield "low", max(0.0, centre - spread)
    yield "high", min(1.0, centre + spread)
    yield "n", n


def total_variation(counts: Counts, law: Law) -> Iterator[tuple[str, float]]:
    """Yield for each kind of fact its distance from the law, 0 (equal) to 1 (disjoint), and the largest as "worst".

    A value that the law does not know counts as wholly wrong. A kind that was never seen is at distance 1.
    """
    worst = 0.0
    for kind, expected in law.items():
        seen = counts.get(kind, {})
        values = sorted({*expected, *seen})
        k = np.array([seen.get(value, 0) for value in values], np.float64)
        p = np.array([expected.get(value, 0.0) for value in values], np.float64)
        distance = float(np.abs(k / k.sum() - p).sum() / 2) if k.sum() else 1.0
        worst = max(worst, distance)
        yield kind, distance
    yield "worst", worst


def separation(true: Any, other: Any) -> Iterator[tuple[str, float]]:
    """Yield the "auc", P(true > other) + P(true = other) / 2, its "error" and the two n.

    The error is that of a U-statistic of two samples: the variances of each score's own rank, over n (DeLong 1988).

    Args:
        true: (N,) scores that should be high, N at least 2.
        other: (M,) scores that should be low, M at least 2.
    """
    true, other = (np.asarray(scores, np.float64) for scores in (true, other))
    if min(len(true), len(other)) < 2:
        raise ValueError(f"telling pairs apart needs two of each kind or more, not {len(true)} and {len(other)}")
    wins = (true[:, None] > other) + 0.5 * (true[:, None] == other)
    yield "auc", float(wins.mean())
    yield "error", math.sqrt(wins.mean(1).var(ddof=1) / len(true) + wins.mean(0).var(ddof=1) / len(other))
    yield "n", len(true)
    yield "n_other", len(other)

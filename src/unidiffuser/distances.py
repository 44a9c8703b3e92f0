"""How far two samples of vectors are apart; each a generator of (name, value), like those of `metrics`.

    frechet      |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), of means and covariances (Heusel et al. 2017): FID
                 where the vectors are Inception's. Biased upwards: it shrinks as samples grow, so compare at equal n
    kernel       the unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); with the kernel
                 (x . y / D + 1)^3 it is KID (Binkowski et al. 2018). May be below zero, which means close
    coverage     precision and recall (Kynkaanniemi et al. 2019): the share of samples that lie in the balls around
                 reference points up to their third neighbour, and of the reference in those around samples
    two_sample   the same discrepancy for any kernel, with the p-value of a permutation test: under the hypothesis that
                 both samples have one law the p-value is uniform

Errors are standard errors over both samples, by the jackknife (Efron & Stein 1981): of all but one for sums over
pairs, of all but a tenth for `frechet`. This file knows arrays only.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from unidiffuser.metrics import proportion

Array = np.ndarray[Any, Any]

NEIGHBOURS = 3
GROUPS = 10
PERMUTATIONS = 500
CHUNK = 1000


def frechet(x: Array, y: Array) -> Iterator[tuple[str, float]]:
    """Yield the "value" of the Frechet distance of x (N, D) and y (M, D), and its "error"."""
    x, y = _checked(x, y, 2)
    yield "value", _frechet(x, y)
    groups = min(GROUPS, len(x), len(y))
    rest = np.array([_frechet(*(np.delete(z, np.s_[k::groups], 0) for z in (x, y))) for k in range(groups)])
    enough = groups > 1 and min(len(x), len(y)) > 3
    yield "error", math.sqrt((groups - 1) * rest.var()) if enough else math.nan


def _frechet(x: Array, y: Array) -> float:
    """With roots R^T R = C the trace of (C_x C_y)^(1/2) is the sum of the singular values of R_x R_y^T."""
    a, b = (_root(z) for z in (x, y))
    shift = x.mean(0) - y.mean(0)
    both = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * both)


def _root(x: Array) -> Array:
    """R (at most D, D) with R^T R the unbiased covariance of x (N, D)."""
    centred = (x - x.mean(0)) / math.sqrt(max(len(x) - 1, 1))
    return np.asarray(np.linalg.qr(centred, "r")) if len(x) > x.shape[1] else centred


def kernel(x: Array, y: Array) -> Iterator[tuple[str, float]]:
    """Yield the "value" of the kernel distance of x (N, D) and y (M, D), and its "error"."""
    x, y = _checked(x, y, 3)
    cubic: Callable[[Array, Array], Array] = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    yield from _discrepancy(cubic(x, x), cubic(y, y), cubic(x, y))


def _discrepancy(xx: Array, yy: Array, xy: Array) -> Iterator[tuple[str, float]]:
    """Yield the unbiased squared discrepancy of kernel values (N, N), (M, M), (N, M), and its error."""
    n, m = xy.shape
    rows = [k.sum(1) - np.diag(k) for k in (xx, yy)]
    value = rows[0].sum() / (n * (n - 1)) + rows[1].sum() / (m * (m - 1)) - 2 * xy.mean()
    yield "value", float(value)
    variance = 0.0
    for row, cross, size in ((rows[0], xy.mean(1), n), (rows[1], xy.mean(0), m)):
        own = (row.sum() - 2 * row) / ((size - 1) * (size - 2))
        without = own - 2 * (cross.sum() - cross) / (size - 1)
        variance += (size - 1) / size * float(np.square(without - without.mean()).sum())
    yield "error", math.sqrt(variance)


def coverage(samples: Array, reference: Array) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield "precision" and "recall" as `metrics.proportion` has them; samples (N, D), reference (M, D)."""
    samples, reference = _checked(samples, reference, NEIGHBOURS + 1)
    for name, points, centres in (("precision", samples, reference), ("recall", reference, samples)):
        radius = np.concatenate(
            [np.partition(part, NEIGHBOURS, 1)[:, NEIGHBOURS] for part in _squares(centres, centres)]
        )  # the nearest is the point itself
        inside = sum(int((part <= radius).any(1).sum()) for part in _squares(points, centres))
        yield name, dict(proportion(inside, len(points)))


def _squares(x: Array, y: Array) -> Iterator[Array]:
    """Squared distances of the rows of x from those of y, some rows of x at a time."""
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        yield np.maximum(np.square(part).sum(1)[:, None] + np.square(y).sum(1) - 2 * part @ y.T, 0)


def two_sample(gram: Array, n: int, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Yield the "value" of the discrepancy, its "error" and the "p" that both samples are of one law.

    Args:
        gram: kernel values (N + M, N + M) of both samples behind one another.
        n: N.
        seed: of the permutations.
    """
    m = len(gram) - n
    if min(n, m) < 3:
        raise ValueError(f"a two-sample test needs 3 of each or more, not {n} and {m}")
    value, error = _discrepancy(gram[:n, :n], gram[n:, n:], gram[:n, n:])
    yield value
    yield error
    dice = np.random.default_rng(seed)
    first = np.zeros((PERMUTATIONS + 1, len(gram)))
    first[0, :n] = 1
    for row in first[1:]:
        row[dice.permutation(len(gram))[:n]] = 1
    inner = gram - np.diag(np.diag(gram))
    second = 1 - first
    within_first, within_second, across = (
        (a @ inner * b).sum(1) for a, b in ((first, first), (second, second), (first, second))
    )
    # Taken from off the diagonal, so that a place is the same in every order; the first row is as it was drawn.
    values = within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m)
    yield "p", float(np.mean(values >= values[0] - 1e-12))


def gaussian_gram(x: Array) -> Array:
    """exp(-|x - y|^2 / median of |x - y|^2) of all rows of x (N, D), (N, N)."""
    x = x.reshape(len(x), -1).astype(np.float64)
    squares = np.concatenate(list(_squares(x, x)))
    off = squares[~np.eye(len(x), dtype=bool)]
    return np.exp(-squares / max(float(np.median(off[off > 1e-9])) if (off > 1e-9).any() else 1.0, 1e-9))


def _checked(x: Array, y: Array, least: int) -> tuple[Array, Array]:
    x, y = (np.asarray(z, np.float64) for z in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"both samples must be rows of as many numbers, not {x.shape} and {y.shape}")
    if min(len(x), len(y)) < least:
        raise ValueError(f"the distance of two samples needs {least} of each or more, not {len(x)} and {len(y)}")
    return x, y

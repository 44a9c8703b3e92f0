"""Ranking metrics, exact also where scores tie.

    One rule for ties: a metric is its mean over all orders of the tied candidates. A constant score is then worth what
    a random order is worth, and no metric depends on where a candidate stands in a table.

A relevant candidate with g candidates above it and m tied with it, itself among them, has each of the ranks g + 1 ...
g + m with the same chance. With D(n) = sum over j <= n of 1 / log2(j + 1), P relevant candidates in the list, and the
best of them in a block of m of which r are relevant:

    recall@k  mean over the relevant of  |{ranks <= k}| / m
    NDCG@k    sum over the relevant of  (D(min(g + m, k)) - D(min(g, k))) / m,   over D(min(P, k))
    Hit@k     1 - C(m - r, k - g) / C(m, k - g) for g < k < g + m;   1 for k >= g + m;   0 for k <= g
    MRR       sum over j of  C(m - j, r - 1) / C(m, r) / (g + j), the first relevant one at rank g + j
    AUC       the share of (relevant, other) pairs in the right order, a tied pair counting one half

AUC pools all lists; GAUC is the AUC within each user, its mean weighted by the user's relevant candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CUTS = (1, 5, 10, 20)


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the relevant candidates of R lists stand, one entry for each of P relevant candidates."""

    row: Tensor
    """(P,) the list it is in; every list has one at least."""
    above: Tensor
    """(P,) candidates of its list with a higher score."""
    tied: Tensor
    """(P,) candidates with its score, itself among them."""
    fellows: Tensor
    """(P,) relevant ones among the tied, itself among them."""
    relevant_above: Tensor
    """(P,) relevant ones among those above."""
    others: Tensor
    """(P,) candidates of its list that are not relevant."""
    rows: int
    """R."""


def ranks(scores: Tensor, relevant: Tensor, asked: Tensor | None = None) -> Ranks:
    """The places of the relevant candidates.

    Args:
        scores: (R, C), higher is better; not NaN.
        relevant: (R, C) bool, one at least in every row.
        asked: (R, C) bool, the candidates that take part; None: all. What is relevant must take part.

    Raises:
        ValueError: NaN among the scores, or a list without anything relevant.
    """
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN, which has no rank; the model that gave it is broken")
    if not bool(relevant.any(1).all()):
        raise ValueError("a list holds nothing relevant; leave it out, it has no rank to measure")
    if asked is not None:
        # -inf may be a true score, so what does not take part is sorted by a place of its own: behind everything.
        scores = torch.where(asked, scores.clamp(min=torch.finfo(scores.dtype).min), -torch.inf)
    total = torch.full(scores.shape[:1], scores.shape[1]) if asked is None else asked.sum(1)
    row, column = relevant.nonzero(as_tuple=True)
    value = scores[row, column]
    order = scores.sort(1).values
    size = int(relevant.sum(1).max())
    mine = torch.full((len(scores), size), torch.inf, dtype=scores.dtype)
    place = torch.arange(len(row)) - torch.searchsorted(row, torch.arange(len(scores)))[row]
    mine[row, place] = value
    low, high = torch.searchsorted(order, mine), torch.searchsorted(order, mine, right=True)
    own = mine.sort(1).values
    count = relevant.sum(1)
    own_low = torch.searchsorted(own, mine)
    own_high = torch.minimum(torch.searchsorted(own, mine, right=True), count[:, None])
    return Ranks(
        row=row,
        above=(scores.shape[1] - high)[row, place],
        tied=(high - low)[row, place],
        fellows=(own_high - own_low)[row, place],
        relevant_above=(count[:, None] - own_high)[row, place],
        others=(total - count)[row],
        rows=len(scores),
    )


def metrics(found: Ranks, cuts: Sequence[int] = CUTS) -> dict[str, Tensor]:
    """Name -> (R,), float64: hit@k, recall@k, ndcg@k for every cut, mrr, and auc within each list (NaN if all are
    relevant)."""
    count = _sum(torch.ones_like(found.row), found)
    longest = int((found.above + found.tied).max())
    gain = torch.cumsum(1 / torch.log2(torch.arange(2, max(longest, int(count.max()), *cuts) + 2).double()), 0)
    gain = torch.cat([torch.zeros(1, dtype=torch.float64), gain])
    first = _best_blocks(found)
    values = {}
    for k in cuts:
        reached = (found.above + found.tied).clamp(max=k)
        start = found.above.clamp(max=k)
        values[f"hit@{k}"] = _hit(found, first, k)
        values[f"recall@{k}"] = _sum((reached - start) / found.tied.double(), found) / count
        dcg = _sum((gain[reached] - gain[start]) / found.tied, found)
        values[f"ndcg@{k}"] = dcg / gain[count.long().clamp(max=k)]
    values["mrr"] = _reciprocal(found, first)
    wrong = (found.above - found.relevant_above) + 0.5 * (found.tied - found.fellows)
    values["auc"] = 1 - _sum(wrong / found.others.double(), found) / count
    return values


def _sum(values: Tensor, found: Ranks) -> Tensor:
    """The sum over the relevant candidates of each list, (R,), float64."""
    return torch.zeros(found.rows, dtype=torch.float64).index_add_(0, found.row, values.double())


def _best_blocks(found: Ranks) -> Tensor:
    """(R,) for each list an entry of its highest block that holds something relevant."""
    order = torch.argsort(found.above, stable=True)
    order = order[torch.argsort(found.row[order], stable=True)]
    return order[torch.searchsorted(found.row[order], torch.arange(found.rows))]


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k), -inf where k > n."""
    n, k = n.double(), k.double()
    inside = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    return torch.where(k > n, -torch.inf, inside)


def _hit(found: Ranks, first: Tensor, k: int) -> Tensor:
    g, m, r = found.above[first], found.tied[first], found.fellows[first]
    slots = (k - g).clamp(min=0)
    slots = torch.minimum(slots, m)
    return 1 - torch.exp(_log_choose(m - r, slots) - _log_choose(m, slots))


def _reciprocal(found: Ranks, first: Tensor) -> Tensor:
    """The mean of 1 / rank of the first relevant candidate."""
    g, m, r = (x[first].double() for x in (found.above, found.tied, found.fellows))
    # r = 1: the mean of 1 / (g + 1) ... 1 / (g + m) is a difference of digammas.
    value = torch.where(m == 1, 1 / (g + 1), (torch.digamma(g + m + 1) - torch.digamma(g + 1)) / m)
    several = (r > 1).nonzero()[:, 0]
    if len(several):
        g, m, r = g[several], m[several], r[several]
        value[several] = 0.0
        for j in range(1, int((m - r).max()) + 2):
            chance = torch.exp(_log_choose(m - j, r - 1) - _log_choose(m, r))
            value[several] += torch.where(j <= m - r + 1, chance / (g + j), 0.0)
    return value


def pooled_auc(scores: Tensor, relevant: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """AUC within groups of candidates.

    Args:
        scores: (N,).
        relevant: (N,) bool.
        group: (N,) int64 from 0; None: all are one group.

    Returns:
        (G,) the AUC of each group, NaN where all are relevant or none is, and (G,) its relevant candidates.
    """
    group = torch.zeros(len(scores), dtype=torch.int64) if group is None else group
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    scores, relevant, group = scores[order], relevant[order], group[order]
    fresh = torch.ones(len(scores), dtype=torch.bool)
    fresh[1:] = (scores[1:] != scores[:-1]) | (group[1:] != group[:-1])
    block = fresh.cumsum(0) - 1
    size = torch.bincount(block)
    middle = (size.cumsum(0) - size).double() + (size + 1) / 2  # the mean rank of a block, counted through all groups
    groups = int(group.max()) + 1
    total = torch.bincount(group, minlength=groups)
    hits = torch.bincount(group[relevant], minlength=groups)
    start = (total.cumsum(0) - total).double()
    rank = middle[block] - start[group]
    rank_sum = torch.zeros(groups, dtype=torch.float64).index_add_(0, group[relevant], rank[relevant])
    # Mann and Whitney: AUC = (sum of ranks - P (P + 1) / 2) / (P N)
    return (rank_sum - hits * (hits + 1) / 2) / (hits * (total - hits)), hits


def gauc(auc: Tensor, weight: Tensor) -> Tensor:
    """The mean of the groups' AUC weighted by their relevant candidates; groups without an AUC do not count."""
    good = auc.isfinite()
    return (auc[good] * weight[good]).sum() / weight[good].sum()


def summary(values: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, float]]]:
    """Name, {"mean", "error"}: the mean over lists and its standard error; lists where it is NaN do not count."""
    for name, value in values.items():
        value = value[value.isfinite()]
        if len(value):
            error = float(value.std() / len(value) ** 0.5) if len(value) > 1 else 0.0
            yield name, {"mean": float(value.mean()), "error": error}

"""What somebody keeps, told by its words: p(item | user, query) with two items, kept and left.

Every sample that a person saw is one event: the words said of it are the query, its item is "kept" or "left". A product
model with a softmax over both items learns them (`models.lightgcn_query` without layers), so that

    log p(kept | words) - log p(left | words)  =  (e_u + sum of e_w) . (e_kept - e_left)  =  prior + sum of weights

and what it has learnt is one number a word. Nobody else's samples take part. Before it is believed it is asked about
sentences that it did not see (`FOLDS` folds; one sentence is never in two): the share of (kept, left) pairs that it
puts in the right order, beside what words that say nothing would reach in one case of twenty.

As a program it reads {"rows": [[words, kept], ...], "seed": 0} and writes a `Taste`, for those who have no torch:

    python -m unidiffuser.recommend.taste < rows.json > taste.json
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from unidiffuser.joint import generator
from unidiffuser.recommend import ranking
from unidiffuser.recommend.events import Events, Index, Interactions, Names, no_events, padded
from unidiffuser.recommend.models import Model
from unidiffuser.recommend.training import Plan, fit_model

LEFT, KEPT = 0, 1
"""The rows of the two items."""
FOLDS = 5
MOST_WORDS = 2000
"""The most frequent words that are learnt from."""
RARE = 2
"""A word of fewer samples says nothing of the next one."""
QUANTILE = 1.645
"""Of the normal law: exceeded in one case of twenty."""

Row = tuple[Sequence[str], bool]
"""The words of a sample, and whether it was kept."""


@dataclass(frozen=True, kw_only=True)
class Taste:
    """What was learnt, and how far to trust it."""

    prior: float
    """log p(kept) / p(left) of a sample without a known word."""
    weights: Mapping[str, float]
    """Word -> what it adds."""
    auc: float | None
    """Share of (kept, left) pairs of held-out sentences in the right order; None: there was no pair."""
    chance: float | None
    """The share that words without any meaning exceed in one case of twenty."""


def fit_taste(rows: Sequence[Row], *, seed: int = 0) -> Taste:
    """Learn from a person's samples; about a second for a hundred of them on one core.

    Raises:
        ValueError: nothing kept, or nothing left.
    """
    if len({kept for _, kept in rows}) < 2:
        raise ValueError("there is nothing to learn: both kept and left samples are needed")
    said = [tuple(dict.fromkeys(words)) for words, _ in rows]
    item = torch.tensor([KEPT if kept else LEFT for _, kept in rows])
    names = vocabulary(said)
    words = padded([[row for row in names.words.rows(one) if row > 0] for one in said], 0)
    events = Events(torch.zeros_like(item), item, words)
    auc, chance = _held_out(events, said, names, seed)
    model = fitted(events, names, seed)
    alone = log_odds(model, torch.arange(len(names.words))[:, None])
    prior = float(alone[0])
    weights = {names.words[row]: float(alone[row]) - prior for row in range(1, len(alone))}
    return Taste(prior=prior, weights=weights, auc=auc, chance=chance)


def log_odds(model: Model, words: Tensor) -> Tensor:
    """log p(kept | words) / p(left | words) of queries (B, W) -> (B,)."""
    scores = model.scores(torch.zeros(len(words), dtype=torch.int64), words)
    return scores[:, KEPT] - scores[:, LEFT]


def vocabulary(said: Sequence[tuple[str, ...]]) -> Names:
    """One user, two items, and the words that some samples have and others have not."""
    counts = Counter(word for one in said for word in one)
    telling = [word for word, n in counts.most_common() if RARE <= n < len(said)]
    return Names(users=Index(["me"]), items=Index(["left", "kept"]), words=Index(["", *telling[:MOST_WORDS]]))


def fitted(events: Events, names: Names, seed: int) -> Model:
    """The product model of these events, in a moment: 120 steps over all of them."""
    data = Interactions(names=names, train=events, valid=no_events(), test=no_events())
    plan = Plan.of(
        "lightgcn-query", seed=seed, layers=0, objective="softmax", dim=4, l2=0.05, epochs=120, batch=4096, lr=0.05
    )
    with tempfile.TemporaryDirectory(prefix="unidiffuser-") as folder:
        return fit_model(data, plan, Path(folder))


def _held_out(
    events: Events, said: Sequence[tuple[str, ...]], names: Names, seed: int
) -> tuple[float | None, float | None]:
    """`Taste.auc` and `Taste.chance`: each sentence counts once as kept, if it ever was, and once as left."""
    place = {words: k for k, words in enumerate(dict.fromkeys(said))}
    of = torch.tensor([place[words] for words in said])
    dealt = torch.randperm(len(place), generator=generator(seed, "folds")) % FOLDS
    fold, last = dealt[of], torch.zeros(len(place), dtype=torch.int64)
    last[of] = torch.arange(len(said))  # a row of each sentence; all have the same words
    pairs = torch.unique(torch.stack([of, events.item]), dim=1)
    scores, group = torch.zeros(pairs.shape[1]), dealt[pairs[0]]
    for k in range(FOLDS):
        seen, asked = events[fold != k], group == k
        if bool(asked.any()) and len(seen.item.unique()) == 2:
            scores[asked] = log_odds(fitted(seen, names, seed), events.words[last[pairs[0, asked]]])
    return _trust(scores, pairs[1] == KEPT, group)


def _trust(scores: Tensor, kept: Tensor, group: Tensor) -> tuple[float | None, float | None]:
    """The mean AUC of the groups that have one, weighted by what was kept in them, and its quantile under chance.

    Mann and Whitney: the AUC of P and N candidates in random order has variance (P + N + 1) / (12 P N).
    """
    auc, hits = ranking.pooled_auc(scores, kept, group)
    misses = torch.bincount(group, minlength=len(hits)) - hits
    there = (hits > 0) & (misses > 0)
    if not bool(there.any()):
        return None, None
    p, n = hits[there].double(), misses[there].double()
    spread = float((p.square() * (p + n + 1) / (12 * p * n)).sum().sqrt() / p.sum())
    return float(ranking.gauc(auc[there], hits[there])), min(1.0, 0.5 + QUANTILE * spread)


def main() -> int:
    """Read rows, write a taste; whoever asked for it has more important things to do than this."""
    os.nice(10)
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    taste = fit_taste([(words, kept) for words, kept in asked["rows"]], seed=asked["seed"])
    sys.stdout.write(json.dumps(asdict(taste), allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Models measured: searches and recommendations apart, against all items and against listed candidates.

    full      every case is a user with a query (or none) and all the items taken with it; it ranks all items but those
              that the user has had in training (and, for the test part, in validation), which are no answer any more
    sampled   every event ranks its own item among its candidates
    words     every search asks which words the user would type: the words of the query among all words

The metrics and their rule for ties are those of `ranking`. Whatever can be asked like a model can be measured: a model,
or the oracle of a world. It knows no file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unidiffuser.recommend import ranking
from unidiffuser.recommend.events import NO_WORD, UNKNOWN, Events, History, Interactions, cat_events

CELLS = 4_000_000
"""So many scores are held at a time."""

Progress = Callable[[int, int], None]
"""Told (cases done, cases)."""


class Follow:
    """Adds up what was done, and tells it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, done: int) -> None:
        self.done += done
        if self.progress:
            self.progress(min(self.done, self.total), self.total)


class Scorer(Protocol):
    """Anything that can be asked like a model; see `models.Model`."""

    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor: ...
    def word_scores(self, users: Tensor, items: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Cases:
    """Rankings over all items: R of them, with P right answers in all."""

    user: Tensor
    """(R,)."""
    words: Tensor
    """(R, W)."""
    row: Tensor
    """(P,) which ranking an answer belongs to."""
    item: Tensor
    """(P,) the answer."""


def cases_of(events: Events) -> Cases:
    """Events of the same user with the same query are one ranking with several answers."""
    keys = torch.cat([events.user[:, None], events.words], 1)
    unique, row = torch.unique(keys, dim=0, return_inverse=True)
    pairs = torch.unique(torch.stack([row, events.item]), dim=1)
    return Cases(unique[:, 0], unique[:, 1:], pairs[0], pairs[1])


def evaluate(
    scorer: Scorer, data: Interactions, part: str = "test", progress: Progress | None = None
) -> dict[str, Any]:
    """Measure on a part of the data.

    Returns:
        {"recommendation", "search": {"events", "full": {metric: {"mean", "error"}}, "sampled": {...}}, "words": {...}};
        what has no event is left out.

    Raises:
        ValueError: the part holds no event, or the model's scores have no order.
    """
    events = data.part(part)
    if not len(events):
        raise ValueError(f"the {part} part of this data holds no event to measure on")
    seen = data.train if part != "test" else cat_events([data.train, data.valid])
    search = events.is_search
    report: dict[str, Any] = {}
    follow = Follow(progress, 2 * len(events) + int(search.sum()))
    for name, rows in (("recommendation", ~search), ("search", search)):
        if not bool(rows.any()):
            continue
        chosen = events[rows]
        report[name] = {"events": len(chosen), "full": full_ranking(scorer, chosen, seen, data.sizes.items, follow)}
        if part in data.candidates:
            report[name]["sampled"] = sampled_ranking(scorer, chosen, data.candidates[part][rows], follow)
    if bool(search.any()):
        report["words"] = word_ranking(scorer, events[search], follow)
    return report


def full_ranking(scorer: Scorer, events: Events, seen: Events, items: int, follow: Follow) -> dict[str, Any]:
    """The metrics over all items; `gauc` is the mean over lists weighted by their answers."""
    cases, had = cases_of(events), History(seen)
    parts = []
    for chunk in torch.arange(len(cases.user)).split(max(1, CELLS // items)):
        scores = scorer.scores(cases.user[chunk], cases.words[chunk])
        inside = (cases.row >= chunk[0]) & (cases.row <= chunk[-1])
        relevant = torch.zeros(scores.shape, dtype=torch.bool)
        relevant[cases.row[inside] - chunk[0], cases.item[inside]] = True
        asked = torch.ones_like(relevant)
        asked[had.pairs(cases.user[chunk])] = False
        parts.append(ranking.metrics(ranking.ranks(scores, relevant, asked | relevant)))
        follow(int(inside.sum()))
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    answers = torch.bincount(cases.row, minlength=len(cases.user))
    gauc = ranking.gauc(values.pop("auc"), answers)
    return dict(ranking.summary(values)) | _found("gauc", gauc)


def sampled_ranking(scorer: Scorer, events: Events, candidates: Tensor, follow: Follow) -> dict[str, Any]:
    """The metrics over given candidates, the event's own item first; `auc` pools all lists, `gauc` a user's."""
    there = candidates != UNKNOWN
    # A list of one has no rank to measure.
    usable = there[:, 1:].any(1).nonzero()[:, 0]
    report: dict[str, Any] = {"lists": len(usable), "lists without negatives": len(events) - len(usable)}
    if not len(usable):
        return report
    scores = torch.empty(len(usable), candidates.shape[1])
    for chunk in torch.arange(len(usable)).split(max(1, CELLS // candidates.shape[1] // 10)):
        rows = usable[chunk]
        asked = candidates[rows].clamp(min=0)
        scores[chunk] = scorer.scores(events.user[rows], events.words[rows], asked).to(scores)
        follow(len(chunk))
    there = there[usable]
    relevant = torch.zeros_like(there)
    relevant[:, 0] = True
    values = ranking.metrics(ranking.ranks(scores, relevant, there))
    for name in [name for name in values if name == "auc" or name.startswith("recall")]:
        del values[name]  # one answer a list: recall is Hit, and the AUC below is that of the pooled lists
    _, group = torch.unique(events.user[usable], return_inverse=True)
    flat = scores[there], relevant[there]
    pooled, _ = ranking.pooled_auc(*flat)
    grouped = ranking.gauc(*ranking.pooled_auc(*flat, group[:, None].expand_as(there)[there]))
    return report | dict(ranking.summary(values)) | _found("auc", pooled) | _found("gauc", grouped)


def _found(name: str, value: Tensor) -> dict[str, dict[str, float]]:
    """A figure that is a number; one that no list could give is left out."""
    return {name: {"mean": float(value)}} if bool(value.isfinite()) else {}


def word_ranking(scorer: Scorer, events: Events, follow: Follow) -> dict[str, Any]:
    """The metrics of words among all words, for the user alone; words that tie are worth their mean."""
    parts = []
    for chunk in torch.arange(len(events)).split(1024):
        asked = events.words[chunk]
        scores = scorer.word_scores(events.user[chunk])
        relevant = torch.zeros(scores.shape, dtype=torch.bool).scatter(1, asked, True)
        relevant[:, NO_WORD] = False
        everything = torch.ones_like(relevant)
        everything[:, NO_WORD] = False
        parts.append(ranking.metrics(ranking.ranks(scores, relevant, everything), (1, 5)))
        follow(len(chunk))
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {"events": len(events), **dict(ranking.summary({k: x for k, x in values.items() if k != "auc"}))}


def demand_accuracy(scorer: Scorer, events: Events, demand: Tensor, topic_of_word: Tensor) -> dict[str, Any]:
    """How often the likeliest word for a user and an item is of the true demand's topic.

    Args:
        events: recommendations, whose demand nobody stated.
        demand: (N,) the true topic of each.
        topic_of_word: (V,) the topic of each word.
    """
    found = torch.cat(
        [
            topic_of_word[scorer.word_scores(events.user[chunk], events.item[chunk]).argmax(1)] == demand[chunk]
            for chunk in torch.arange(len(events)).split(1024)
        ]
    ).double()
    return {"events": len(events), **dict(ranking.summary({"accuracy": found}))}

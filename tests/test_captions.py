"""Captions: the batched beam search against a plain one, the nucleus against its law."""

import itertools
import math
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from unidiffuser.captions import Captioning, beam_search, captions

TOKENS, END = 6, 5


class Chain:
    """A language model whose next token depends on the last two, and on which sequence it is."""

    def __init__(self, logits: Tensor, last: Tensor | None = None, first: Tensor | None = None) -> None:
        self.table = logits  # (B, V + 1, V + 1, V); the last entry stands for none yet
        b = len(logits)
        self.last = torch.full((b, 2), TOKENS) if last is None else last
        self.first = torch.arange(b) if first is None else first

    @property
    def logits(self) -> Tensor:
        return self.table[self.first, self.last[:, 0], self.last[:, 1]]

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.table, self.last[rows], self.first[rows])

    def extend(self, tokens: Tensor) -> Self:
        return type(self)(self.table, torch.stack([self.last[:, 1], tokens], 1), self.first)


def language(batch: int = 3, seed: int = 0, sharp: float = 2.0) -> Chain:
    shape = (batch, TOKENS + 1, TOKENS + 1, TOKENS)
    return Chain(sharp * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def score(model: Chain, row: int, sequence: list[int]) -> float:
    """The mean log-probability."""
    before, total = [TOKENS, TOKENS, *sequence], 0.0
    for k, token in enumerate(sequence):
        total += float(model.table[row, before[k], before[k + 1]].log_softmax(-1)[token])
    return total / len(sequence)


def plain_search(model: Chain, row: int, beams: int, longest: int) -> list[int]:
    """Beam search of one caption as lists, a finished one keeping its place and score."""
    kept: list[list[int]] = [[]]
    for _ in range(longest):
        grown = [s if s[-1:] == [END] else [*s, token] for s in kept for token in range(TOKENS)]
        kept = sorted({tuple(s) for s in grown}, key=lambda s: -score(model, row, list(s)))[:beams]
        kept = [list(s) for s in kept]
        if all(s[-1] == END for s in kept):
            break
    return kept[0]


@pytest.mark.parametrize("beams", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_beam_search(beams: int, seed: int) -> None:
    model = language(seed=seed)
    tokens, lengths, means = beam_search(model, END, Captioning(beams=beams, max_tokens=7))
    for row in range(3):
        found = tokens[row, 0, : lengths[row, 0]].tolist()
        assert found == plain_search(model, row, beams, 7)
        assert float(means[row, 0]) == pytest.approx(score(model, row, found), abs=1e-5)


def test_a_wide_search_finds_the_best_of_all() -> None:
    model = language(batch=1, seed=4)
    every = [list(s) for n in (1, 2) for s in itertools.product(range(TOKENS), repeat=n)]
    whole = [s for s in every if END not in s[:-1] and (s[-1] == END or len(s) == 2)]
    best = max(whole, key=lambda s: score(model, 0, s))
    tokens, lengths, _ = beam_search(model, END, Captioning(beams=6, max_tokens=2))
    assert tokens[0, 0, : lengths[0, 0]].tolist() == best


def test_a_caption_is_the_same_in_any_batch() -> None:
    model = language(batch=4)
    for how, seeds in ((Captioning(max_tokens=9), None), (Captioning(top_p=0.9, max_tokens=9), [7, 1, 7, 3])):
        together = captions(model, END, how, seeds)
        alone = [captions(Chain(model.table[k : k + 1]), END, how, seeds and seeds[k : k + 1])[0] for k in range(4)]
        assert together == alone and all(END not in row for row in together)


@pytest.mark.parametrize("top_p", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_nucleus_is_drawn_from_by_its_law(top_p: float, temperature: float) -> None:
    n = 4000
    one = language(batch=1, seed=2, sharp=1.0)
    many = Chain(one.table.expand(n, -1, -1, -1))
    rows = captions(many, END, Captioning(top_p=top_p, temperature=temperature, max_tokens=1), range(n))
    counts = torch.tensor([sum(row == ([k] if k != END else []) for row in rows) for k in range(TOKENS)]) / n
    p = (one.table[0, TOKENS, TOKENS] / temperature).softmax(-1)
    kept, total = [], 0.0
    for k in p.argsort(descending=True).tolist():
        if total < top_p:
            kept.append(k)
            total += float(p[k])
    law = torch.tensor([float(p[k]) / total if k in kept else 0.0 for k in range(TOKENS)])
    assert (counts - law).abs().max() < 4 * math.sqrt(0.25 / n)
    assert all(counts[k] == 0 for k in range(TOKENS) if k not in kept)


def test_a_small_nucleus_is_the_likeliest_token() -> None:
    model = language()
    assert captions(model, END, Captioning(top_p=1e-9, max_tokens=9)) == captions(
        model, END, Captioning(beams=1, max_tokens=9)
    )


def test_captions_are_cut_at_their_longest() -> None:
    endless = language()
    endless.table[..., END] = -100.0
    for how in (Captioning(max_tokens=4), Captioning(top_p=0.9, max_tokens=4)):
        assert [len(row) for row in captions(endless, END, how)] == [4, 4, 4]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"beams": 0}, "1 to 64 beams and 1 to 1000 tokens, not 0 beams and 67 tokens"),
        ({"max_tokens": 1001}, "not 5 beams and 1001 tokens"),
        ({"top_p": 0.0}, "top_p must lie above 0 and at most at 1, not 0.0"),
        ({"top_p": math.nan}, "top_p must lie above 0 and at most at 1, not nan"),
        ({"temperature": 0.0}, "the temperature of captions must lie above 0 and at most at 100, not 0.0"),
    ],
)
def test_impossible_captions_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Captioning(**options)

"""What somebody keeps, learnt from words: against people whose taste is known, another implementation, and noise."""

import io
import itertools
import json
import math
import random
import sys
from dataclasses import asdict

import pytest
import torch

from unidiffuser.recommend import taste
from unidiffuser.recommend.events import Events, padded
from unidiffuser.recommend.taste import FOLDS, Row, fit_taste, fitted, log_odds, vocabulary

SIZES, COLOURS = ("small", "medium", "large"), ("red", "blue", "green", "yellow", "teal", "purple")
SENTENCES = [("a", *words) for words in itertools.product(SIZES, COLOURS, ("circle", "square", "star", "ring"))]
LIKES = {"red": 2.5, "teal": 1.0, "blue": -2.5, "star": 1.5, "ring": -1.5}


def chance_of(words: tuple[str, ...]) -> float:
    return 1 / (1 + math.exp(-sum(LIKES.get(word, 0.0) for word in words)))


def somebody(count: int, seed: int, *, noise: bool = False) -> list[Row]:
    """Samples that somebody of a known taste saw, or somebody who keeps by the throw of a coin."""
    dice = random.Random(seed)
    seen = [dice.choice(SENTENCES) for _ in range(count)]
    return [(words, dice.random() < (0.5 if noise else chance_of(words))) for words in seen]


@pytest.fixture(scope="module")
def learnt() -> taste.Taste:
    return fit_taste(somebody(120, seed=3))


def test_a_known_taste_is_found(learnt: taste.Taste) -> None:
    """On all sentences there are: nearly the order of the true chances, and the words with the right signs."""
    scores = [learnt.prior + sum(learnt.weights.get(word, 0.0) for word in words) for words in SENTENCES]
    truth = [chance_of(words) for words in SENTENCES]
    pairs = [(a, b) for a, b in itertools.combinations(range(len(truth)), 2) if abs(truth[a] - truth[b]) > 0.3]
    right = sum((scores[a] > scores[b]) == (truth[a] > truth[b]) for a, b in pairs)
    assert right > 0.9 * len(pairs)
    assert learnt.weights["red"] > learnt.weights["green"] > learnt.weights["blue"]
    assert "a" not in learnt.weights  # every sentence has it
    assert learnt.auc is not None and learnt.chance is not None and learnt.auc > learnt.chance > 0.5


def test_it_is_the_logistic_regression_that_others_find() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    rows = somebody(200, seed=5)
    found = fit_taste(rows).weights
    known = sorted(found)
    x = torch.tensor([[float(word in words) for word in known] for words, _ in rows], dtype=torch.float64)
    y = torch.tensor([2.0 * kept - 1 for _, kept in rows], dtype=torch.float64)

    def loss(w):  # type: ignore[no-untyped-def]
        w = torch.tensor(w, dtype=torch.float64)
        margin = y * (x @ w[1:] + w[0])
        return float(torch.nn.functional.softplus(-margin).mean() + 0.005 * w[1:].square().sum())

    theirs = torch.tensor(optimize.minimize(loss, [0.0] * (len(known) + 1)).x[1:])
    ours = torch.tensor([found[word] for word in known], dtype=torch.float64)
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.95


def test_the_weights_are_the_models_own_scores(learnt: taste.Taste) -> None:
    rows = somebody(120, seed=3)
    said = [tuple(words) for words, _ in rows]
    names = vocabulary(said)
    words = padded([[row for row in names.words.rows(one) if row > 0] for one in said], 0)
    item = torch.tensor([int(kept) for _, kept in rows])
    model = fitted(Events(torch.zeros_like(item), item, words), names, 0)
    sums = [learnt.prior + sum(learnt.weights.get(word, 0.0) for word in one) for one in said]
    assert log_odds(model, words).tolist() == pytest.approx(sums, abs=1e-4)


def test_no_sentence_is_learnt_from_and_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in somebody(40, seed=2) for _ in range(3)]  # every sentence three times
    learnt_from: list[Events] = []
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(taste, "fitted", lambda events, names, seed: learnt_from.append(events))
    monkeypatch.setattr(taste, "log_odds", lambda model, words: asked.append(words) or torch.zeros(len(words)))
    fit_taste(rows)
    assert len(learnt_from) == FOLDS + 1 and len(learnt_from[-1]) == 120
    for events, words in zip(learnt_from[:FOLDS], asked[:FOLDS], strict=True):
        assert not {tuple(w.tolist()) for w in events.words} & {tuple(w.tolist()) for w in words}


def test_noise_is_not_believed() -> None:
    """Of people who keep by a coin one in twenty should pass; this one does not."""
    found = fit_taste(somebody(60, 1, noise=True))
    assert found.auc is not None and found.chance is not None and found.auc < found.chance


def test_what_has_no_answer_has_none() -> None:
    with pytest.raises(ValueError, match="both kept and left"):
        fit_taste([(("red",), True)] * 5)
    one = fit_taste([(("red",), k % 2 == 0) for k in range(8)])  # one sentence: nothing tells them apart
    assert one.weights == {} and one.auc == 0.5
    apart = fit_taste([(("red",), True)] * 3 + [(("blue",), False)] * 3)
    assert apart.auc is None or 0 <= apart.auc <= 1


def test_the_program_is_the_function(learnt: taste.Taste, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = somebody(120, seed=3)
    monkeypatch.setattr(taste.os, "nice", lambda by: 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"rows": rows, "seed": 0})))
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    assert taste.main() == 0
    assert json.loads(out.getvalue()) == asdict(learnt)

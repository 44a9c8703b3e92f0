"""The world and its oracle: its laws against what is drawn, and no model above what can be known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recommend_worlds import QUICK, SMALL, TINY, quick_model, world_data

from unidiffuser.checkpoints import ModelError
from unidiffuser.recommend.evaluation import evaluate
from unidiffuser.recommend.events import Index, Interactions, Names
from unidiffuser.recommend.oracle import Oracle
from unidiffuser.recommend.truth import LAW, TRUTH, Truth, read_truth, write_world
from unidiffuser.recommend.world import World, WorldConfig


def all_names(c: WorldConfig) -> Names:
    users, items, words = (Index(map(str, range(n))) for n in (c.users, c.items, c.topics * c.words))
    return Names(users=users, items=items, words=Index(["", *words.labels]))


def test_a_world_is_a_function_of_its_config() -> None:
    first, again, other = (list(World.make(c).draw()) for c in (TINY, TINY, WorldConfig(**{**vars(TINY), "seed": 1})))
    assert first == again != other
    assert len(first) == TINY.users * TINY.events
    assert len({(user, item) for user, item, _, _ in first}) == len(first)


def test_the_oracle_is_the_share_of_many_draws() -> None:
    """p(i | u, q) by drawing events of one user and keeping those with a query, against the formula."""
    c = WorldConfig(users=1, items=12, events=1, topics=3, words=2, styles=2, stray=0.2, wrong=0.2, search=1.0)
    world, dice, n = World.make(c), np.random.default_rng(5), 200_000
    oracle = Oracle(world, all_names(c))
    z = dice.choice(c.topics, p=world.habit[0], size=n)
    within = world.within_topic(np.array([0]))[0]
    item = dice.integers(c.items, size=n)
    for topic in range(c.topics):
        members = np.flatnonzero(world.topic == topic)
        drawn = dice.choice(members, p=within[members], size=n)
        item = np.where((z == topic) & (dice.random(n) >= c.stray), drawn, item)
    words = c.words * z + dice.integers(c.words, size=n)
    words = np.where(dice.random(n) < c.wrong, dice.integers(c.topics * c.words, size=n), words)
    for word in (None, 0, 3):
        kept = np.ones(n, bool) if word is None else words == word
        share = np.bincount(item[kept], minlength=c.items) / kept.sum()
        asked = torch.tensor([[0 if word is None else word + 1]])
        p = oracle.probabilities(torch.tensor([0]), asked)[0].numpy()
        assert p.sum() == pytest.approx(1)
        assert np.abs(share - p).max() < 5 * np.sqrt(p.max() / kept.sum())
    p_word = oracle.word_scores(torch.tensor([0]))[0, 1:].exp().numpy()
    assert np.abs(np.bincount(words, minlength=6) / n - p_word).max() < 5e-3
    for i in (0, 7):
        p_z = oracle.demand(torch.tensor([0]), torch.tensor([i]))[0].numpy()
        assert np.abs(np.bincount(z[item == i], minlength=3) / (item == i).sum() - p_z).max() < 0.02


def test_drawn_events_follow_the_law_without_what_was_had() -> None:
    """The first event of each of many users is p(i | u) itself: the sum over users of their log-likelihoods."""
    c = WorldConfig(users=4000, items=20, events=1, topics=4, words=2, search=0.0)
    world = World.make(c)
    oracle = Oracle(world, all_names(c))
    item = torch.tensor([i for _, i, _, _ in world.draw()])
    log_p = oracle.scores(torch.arange(c.users), torch.zeros(c.users, 1, dtype=torch.int64))
    found = log_p.gather(1, item[:, None])[:, 0]
    mean = (log_p.exp() * log_p).sum(1)
    spread = ((log_p.exp() * log_p.square()).sum(1) - mean.square()).sum().sqrt()
    assert abs(float((found - mean).sum() / spread)) < 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Interactions, Truth, Path]:
    folder = tmp_path_factory.mktemp("small")
    return (*world_data(SMALL, folder / "world"), folder)


@pytest.fixture(scope="module")
def reports(small: tuple[Interactions, Truth, Path]) -> dict[str, dict]:  # type: ignore[type-arg]
    data, truth, folder = small
    models = {name: quick_model(name, data, folder) for name in QUICK}
    found = {name: evaluate(model, data) for name, model in {**models, "oracle": truth.oracle}.items()}
    for name, scorer in {**models, "oracle": truth.oracle}.items():
        found[name]["demand"] = truth.demand_accuracy(scorer, data.test)
    return found


WATCHED = ("hit@5", "ndcg@5", "mrr")


def above(model: dict, oracle: dict) -> list[str]:  # type: ignore[type-arg]
    """Where a model is above the oracle by more than chance explains."""
    found = []
    for what in ("recommendation", "search"):
        for how in ("full", "sampled"):
            for metric in WATCHED:
                a, b = model[what][how][metric], oracle[what][how][metric]
                if a["mean"] > b["mean"] + 3 * (a["error"] ** 2 + b["error"] ** 2) ** 0.5:
                    found.append(f"{what} {how} {metric}")
    return found


@pytest.mark.parametrize("name", QUICK)
def test_no_model_beats_the_oracle(name: str, reports: dict[str, dict]) -> None:  # type: ignore[type-arg]
    assert above(reports[name], reports["oracle"]) == []
    demand, best = reports[name]["demand"]["accuracy"], reports["oracle"]["demand"]["accuracy"]
    assert demand["mean"] <= best["mean"] + 3 * (demand["error"] + best["error"])


def test_a_model_that_has_seen_the_answers_does(small: tuple[Interactions, Truth, Path]) -> None:
    data, truth, _ = small

    class Cheat:
        def scores(self, users, words, items=None):  # type: ignore[no-untyped-def]
            table = torch.zeros(data.sizes.users, data.sizes.items)
            table[data.test.user, data.test.item] = 1.0
            return table[users] if items is None else table[users].gather(1, items)

        word_scores = truth.oracle.word_scores

    assert len(above(evaluate(Cheat(), data), evaluate(truth.oracle, data))) == 12


def test_who_reads_queries_searches_far_better_and_all_learn_something(reports: dict[str, dict]) -> None:  # type: ignore[type-arg]
    search = {name: r["search"]["sampled"]["hit@5"]["mean"] for name, r in reports.items()}
    blind = max(search[name] for name in ("popularity", "mf", "lightgcn"))
    for name in ("lightgcn-query", "uditsr", "masked", "diffusion"):
        assert search[name] > 1.3 * blind, search
    recommended = {name: r["recommendation"]["sampled"]["hit@5"]["mean"] for name, r in reports.items()}
    for name in ("lightgcn", "lightgcn-query", "masked", "diffusion"):
        assert recommended[name] > 1.2 * recommended["popularity"], recommended


def test_uditsr_recovers_demands_better_than_by_counting(reports: dict[str, dict]) -> None:  # type: ignore[type-arg]
    found = {name: r["demand"]["accuracy"]["mean"] for name, r in reports.items()}
    assert found["uditsr"] > found["mf"] + 0.1, found


def test_truth_that_is_damaged_or_of_another_world_is_refused(tmp_path: Path) -> None:
    write_world(TINY, tmp_path)
    names = all_names(TINY)
    assert read_truth(tmp_path, names) is not None
    assert read_truth(tmp_path / "nowhere", names) is None
    with pytest.raises(ValueError, match="users, and the data names another"):
        read_truth(tmp_path, Names(users=Index(["99"]), items=names.items, words=names.words))
    with pytest.raises(ValueError, match="not of the world"):
        read_truth(tmp_path, Names(users=Index(["anna"]), items=names.items, words=names.words))
    (tmp_path / TRUTH).write_bytes(b"<html>")
    with pytest.raises(ModelError, match="make the world again"):
        read_truth(tmp_path, names)
    (tmp_path / LAW).write_text('{"kind": "intents", "version": 2}')
    with pytest.raises(ModelError, match="make the world again"):
        read_truth(tmp_path, names)


@pytest.mark.parametrize(
    "change",
    [{"users": 0}, {"items": 3}, {"stray": 1.5}, {"breadth": 0.0}, {"seed": -1}, {"events": 40}],
)
def test_worlds_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        WorldConfig(**{**vars(TINY), **change})


def test_a_user_who_finds_too_few_items_is_said_so() -> None:
    c = WorldConfig(users=1, items=30, events=20, topics=30, breadth=1e-3, stray=0.0)
    with pytest.raises(ValueError, match="ask for fewer events"):
        list(World.make(c).draw())

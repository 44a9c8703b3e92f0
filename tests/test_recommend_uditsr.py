"""UDITSR: the factorised generator and the node offsets against the published edge-wise form; its lists; its leaks."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.graph import most_frequent, without_own
from unidiffuser.recommend.models import Batch, uditsr
from unidiffuser.recommend.models.translation import Translation
from unidiffuser.recommend.models.uditsr import UDITSR, UDITSRConfig

SIZES = Sizes(users=9, items=7, words=6)
REFERENCE = {"masked": False, "leave_one_out": False, "last_rectifier": True, "head": "mlp", "refresh": "step"}
OURS = {"leave_one_out": False, "refresh": "step"}


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())


def edgewise(model: UDITSR) -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "edgewise.py"
    spec = importlib.util.spec_from_file_location("edgewise", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["edgewise"] = module
    spec.loader.exec_module(module)
    return module.Edgewise(model)


def some_events(count: int = 60, width: int = 3, seed: int = 0) -> Events:
    """Searches of 1 to 3 words, recommendations, repeats, and one user and one item without any event."""
    g = torch.Generator().manual_seed(seed)
    user = torch.randint(SIZES.users - 1, (count,), generator=g)
    item = torch.randint(SIZES.items - 1, (count,), generator=g)
    words = torch.randint(1, SIZES.words, (count, width), generator=g)
    length = torch.randint(width + 1, (count, 1), generator=g)
    return Events(user, item, words * (torch.arange(width) < length))


def double_model(events: Events, **settings: Any) -> UDITSR:
    torch.manual_seed(1)
    model = UDITSR(UDITSRConfig(dim=5, **settings), SIZES, events).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * 0.7)
    seen = model.train_events
    counted = seen.words > 0 if model.config.masked else seen.is_search[:, None] & (seen.words >= 0)
    model.translation = Translation(seen, counted, SIZES, dtype=torch.float64)
    return model


def some_batch(events: Events) -> Batch:
    rows = torch.arange(0, len(events), 2)
    negative = (events.item[rows] + 1) % SIZES.items
    return Batch(events[rows], negative, rows, torch.Generator())


@pytest.mark.parametrize("settings", [REFERENCE, OURS, {**OURS, "layers": 3, "supervision": 0.0}])
def test_loss_vectors_and_gradients_equal_the_published_form(settings: dict[str, Any]) -> None:
    events = some_events()
    model = double_model(events, **settings)
    plain, batch = edgewise(model), some_batch(model.train_events)
    state = model.state()
    for ours, theirs in zip((state.users, state.items), plain.propagate(), strict=True):
        assert gap(ours, theirs) < 1e-12
    mine, theirs = model.loss(batch, 0)[0], plain.loss(batch)
    assert gap(mine, theirs) < 1e-12
    names, weights = zip(*model.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(x, weights, allow_unused=True) for x in (mine, theirs))
    for name, a, b in zip(names, ours, theirs, strict=True):
        a, b = (torch.zeros(1, dtype=torch.float64) if x is None else x for x in (a, b))
        assert gap(a, b) < 1e-12, name
    assert sum(bool((x != 0).any()) for x in ours if x is not None) > 8


@pytest.mark.parametrize("many", [False, True])
def test_the_factorised_generator_is_the_plain_one_by_either_way_of_its_attention(many: bool) -> None:
    model = double_model(some_events(), **REFERENCE)
    shares = model.generate.shares(model.user, model.item, model.word_table())
    users, items = torch.cartesian_prod(torch.arange(SIZES.users), torch.arange(SIZES.items)).T
    if not many:  # few pairs take one product each, many take the table of all users and words
        users, items = users[:3], items[:3]
    made, plain = model.generate(shares, users, items), edgewise(model).demands(users, items)
    assert gap(made, plain) < 1e-12


def test_finite_differences_agree_with_the_gradient() -> None:
    model = double_model(some_events(30), **OURS)
    batch = some_batch(model.train_events)

    def loss_of(word: Tensor) -> Tensor:
        return torch.func.functional_call(_Loss(model), {"model.word": word}, (batch,))

    assert torch.autograd.gradcheck(loss_of, model.word.detach().requires_grad_(), eps=1e-6, atol=1e-8)


class _Loss(torch.nn.Module):
    def __init__(self, model: UDITSR) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch, 0)[0]


def test_offsets_once_an_epoch_are_those_of_each_step_before_the_weights_move() -> None:
    events = some_events()
    each, once = (double_model(events, leave_one_out=False, refresh=refresh) for refresh in ("step", "epoch"))
    batch = some_batch(each.train_events)
    assert gap(each.loss(batch, 0)[0], once.loss(batch, 0)[0]) < 1e-12
    with torch.no_grad():
        once.item.add_(0.1)
    assert gap(once.loss(batch, 0)[0], once.loss(batch, 1)[0]) > 1e-6


def test_a_perfect_translation_has_distance_zero_and_stays() -> None:
    """Where e_i = e_u + q on every edge, propagation only multiplies by the sum of its layers' weights."""
    users, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    users = users[:1].expand(4, 3)
    items = users + q
    n = torch.arange(4)
    events = Events(n, n, torch.ones(4, 1, dtype=torch.int64))
    translation = Translation(events, events.words > 0, Sizes(users=4, items=4, words=2), torch.float64)
    words = torch.cat([torch.zeros_like(q), q])
    e_u, e_i = translation.carry(users, items, translation.searched(words), 2)
    total = 1 + 1 / 2 + 1 / 3
    assert gap(e_u, total * users) < 1e-12
    assert gap(e_i, total * items) < 1e-12


def lists_by_counting(events: Events, owner: Tensor, owners: int, count: int, skip: int = -1) -> list[list[int]]:
    """The most frequent words, counted one by one: the more frequent first, then the earlier seen."""
    seen: list[Counter[int]] = [Counter() for _ in range(owners)]
    for row, (who, words) in enumerate(zip(owner.tolist(), events.words.tolist(), strict=True)):
        if row != skip:
            seen[who].update(word for word in words if word)
    return [[w for w, _ in c.most_common(count)] + [0] * (count - min(count, len(c))) for c in seen]


def test_lists_of_words_are_counted_right() -> None:
    events = some_events(200, seed=3)
    found, often = most_frequent(events.user, events.words, SIZES.users, 3)
    assert found.tolist() == lists_by_counting(events, events.user, SIZES.users, 3)
    assert found[-1].tolist() == often[-1].tolist() == [0, 0, 0]


def test_leaving_an_event_out_is_counting_without_it() -> None:
    events = some_events(80, seed=4)
    alone = without_own(events.user, events.words, SIZES.users, 3)
    full = lists_by_counting(events, events.user, SIZES.users, 99)
    for row in range(len(events)):
        who = int(events.user[row])
        plain = lists_by_counting(events, events.user, SIZES.users, 99, skip=row)[who]
        left = Counter({w: 0 for w in full[who] if w})
        for other in ((events.user == who).nonzero()[:, 0]).tolist():
            if other != row:
                left.update(w for w in events.words[other].tolist() if w)
        assert set(alone[row].tolist()) - {0} <= set(plain)
        counts = [left[w] for w in alone[row].tolist() if w]
        assert counts == sorted((left[w] for w in plain if w), reverse=True)[: len(counts)]
        assert len(counts) == min(3, len([w for w in plain if w]))


def test_with_its_own_query_left_out_a_search_cannot_copy_its_target() -> None:
    """One user, one item, one search: all that the generator could know of the query is the query itself."""
    events = Events(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([[2, 0], [3, 4]]))
    torch.manual_seed(0)
    model = UDITSR(UDITSRConfig(dim=4), Sizes(users=2, items=2, words=5), events)
    assert all(bool((lists == 0).all()) for lists in model.left_out)
    assert model.generate.user_words.tolist() == [[2, 0, 0], [3, 4, 0]]


def test_pads_count_in_the_reference_and_nowhere_else() -> None:
    events = some_events()
    for settings, counts in ((REFERENCE, True), (OURS, False)):
        model = double_model(events, **settings)
        model.ready()
        users, words = torch.arange(4), torch.tensor([[1, 0, 0]] * 4)
        before = model.scores(users, words)
        with torch.no_grad():
            model.word[0] += 1.0
        model.ready()
        assert bool((model.scores(users, words) != before).any()) == counts


@pytest.mark.parametrize(("head", "generator"), [("dot", True), ("mlp", True), ("dot", False), ("mlp", False)])
def test_scores_are_those_that_training_compares(head: str, generator: bool) -> None:
    model = double_model(some_events(), head=head, refresh="step", generator=generator)
    model.ready()
    users = torch.arange(SIZES.users)
    words = torch.tensor([[0, 0], [2, 0], [3, 1]]).repeat(3, 1)
    table = model.scores(users, words)
    state = model.state()
    for row in range(len(users)):
        pair = users[row].expand(SIZES.items), torch.arange(SIZES.items)
        query, search = model.query(state, words[row : row + 1]), (words[row] > 0).any().expand(SIZES.items)
        demand = model.demand(state, *pair, query.expand(SIZES.items, -1), search)
        torch.testing.assert_close(table[row].double(), model.score(state, *pair, demand, search), atol=1e-5, rtol=1e-5)
    some = torch.tensor([[3, 1], [0, 6], [2, 2]]).repeat(3, 1)
    torch.testing.assert_close(model.scores(users, words, some), table.gather(1, some))


@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_pairs_are_asked_in_parts_of_users_and_of_items(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double_model(some_events(), head=head, refresh="step")
    model.ready()
    users, words = torch.arange(SIZES.users), torch.tensor([[0], [2], [0]]).repeat(3, 1)
    whole, sizes = model.scores(users, words), list[int]()
    model.generate.register_forward_pre_hook(lambda _, given: sizes.append(len(given[1])))
    monkeypatch.setattr(uditsr, "ASKED", 5)  # less than one user's row of 7
    torch.testing.assert_close(model.scores(users, words), whole)
    assert sizes and max(sizes) <= 5


def test_the_likeness_is_exact_where_a_demand_is_the_sum_of_the_users_and_the_items() -> None:
    model = double_model(some_events(), refresh="step")
    model.generate.rest = torch.nn.Linear(10, 5).double()  # type: ignore[assignment]
    with torch.no_grad():
        model.generate.ask.weight.zero_()  # all users attend alike
    model.ready()
    users, words = torch.arange(-1, SIZES.users), torch.tensor([[0], [2]]).repeat(5, 1)
    torch.testing.assert_close(model.coarse(users, words), model.scores(users, words))


def test_many_items_have_a_shortlist_unless_the_model_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uditsr, "MANY", 6)
    monkeypatch.setattr(uditsr, "SHORT", 3)
    quiet, search = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64)
    for settings, expected in (
        ({}, 3),
        ({"shortlist": 0}, 0),
        ({"shortlist": 4}, 4),
        ({"head": "mlp"}, 0),
        ({"generator": False}, 0),
    ):
        model = double_model(some_events(), **settings)  # type: ignore[arg-type]
        model.ready()
        assert (model.shortlist(quiet), model.shortlist(search)) == (expected, 0), settings
    monkeypatch.setattr(uditsr, "MANY", 7)
    model = double_model(some_events())
    model.ready()
    assert model.shortlist(quiet) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 0},
        {"head": "tree"},
        {"supervision": -1.0},
        {"refresh": "never"},
        {"layers": -1},
        {"shortlist": -2},
        {"shortlist": 5, "head": "mlp"},
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least|must be|head is|only the dot head"):
        UDITSRConfig(**settings)

"""The models against dense algebra and closed forms: products, the graph, the losses, the joint and its roles."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unidiffuser.recommend.batches import Batches
from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.graph import Link
from unidiffuser.recommend.models import Batch, Model, configure, find, kinds
from unidiffuser.recommend.models.diffusion import Diffusion, LatentDenoiser
from unidiffuser.recommend.models.joint import STREAMS

SIZES = Sizes(users=5, items=6, words=5)
NOBODY = torch.tensor([-1])


def some_events(count: int = 30, seed: int = 0) -> Events:
    g = torch.Generator().manual_seed(seed)
    user = torch.randint(SIZES.users - 1, (count,), generator=g)
    item = torch.randint(SIZES.items, (count,), generator=g)
    words = torch.randint(1, SIZES.words, (count, 2), generator=g) * (torch.rand(count, 1, generator=g) < 0.5)
    return Events(user, item, words)


def made(kind: str, train: Events | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    return find(kind)(configure(kind, settings), SIZES, some_events() if train is None else train)


def whole_batch(events: Events) -> Batch:
    rows = torch.arange(len(events))
    return Batch(events, (events.item + 1) % SIZES.items, rows, torch.Generator().manual_seed(0))


def adjacency(events: Events) -> Tensor:
    a = torch.zeros(SIZES.users, SIZES.items, dtype=torch.float64)
    a[events.user, events.item] = 1.0
    return a


def test_every_file_of_the_folder_is_a_model() -> None:
    assert kinds() == ["diffusion", "lightgcn", "lightgcn-query", "masked", "mf", "popularity", "uditsr"]
    assert all(issubclass(find(kind), Model) and find(kind).kind == kind for kind in kinds())


def test_a_link_multiplies_from_both_sides_with_gradients() -> None:
    events = some_events()
    g = torch.Generator().manual_seed(1)
    values = torch.rand(len(events), generator=g, dtype=torch.float64)
    link = Link(events.user, events.item, values, (SIZES.users, SIZES.items))
    dense = torch.zeros(SIZES.users, SIZES.items, dtype=torch.float64)
    dense.index_put_((events.user, events.item), values, accumulate=True)
    for sparse, matrix in ((link, dense), (link.t, dense.T)):
        x = torch.randn(matrix.shape[1], 3, generator=g, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(sparse @ x, matrix @ x)
        assert torch.autograd.gradcheck(lambda x, sparse=sparse: sparse @ x, x)


def test_lightgcn_is_the_dense_formula() -> None:
    model, a = made("lightgcn", layers=3), adjacency(some_events())
    norm = a / (a.sum(1, keepdim=True) * a.sum(0)).sqrt().clamp(min=1e-300)
    users, items = model.user.detach().double(), model.item.detach().double()
    sum_u, sum_i = users, items
    for _ in range(3):
        users, items = norm @ items, norm.T @ users
        sum_u, sum_i = sum_u + users, sum_i + items
    found = model.tables()
    torch.testing.assert_close(found.users.double(), sum_u / 4, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.items.double(), sum_i / 4, atol=1e-6, rtol=1e-6)


def test_bpr_and_softmax_are_their_equations() -> None:
    events = some_events()
    batch = whole_batch(events)
    model = made("lightgcn-query", l2=0.0)
    t = model.tables()
    words = t.words[events.words] * (events.words > 0)[..., None]
    asks = t.users[events.user] + words.sum(1)
    scores = asks @ t.items.T
    margin = scores.gather(1, events.item[:, None]) - scores.gather(1, batch.negative[:, None])
    torch.testing.assert_close(model.loss(batch, 0)[0], -margin.sigmoid().log().mean())
    soft = made("lightgcn-query", l2=0.0, objective="softmax")
    torch.testing.assert_close(soft.loss(batch, 0)[0], F.cross_entropy(scores, events.item))


def test_an_event_without_a_negative_left_takes_no_part_in_bpr() -> None:
    events = some_events()
    model, batch = made("mf", l2=0.0), whole_batch(events)
    half = Batch(events, batch.negative.where(torch.arange(len(events)) < 10, -1), batch.rows, batch.generator)
    first = Batch(events[:10], batch.negative[:10], batch.rows[:10], batch.generator)
    torch.testing.assert_close(model.loss(half, 0)[0], model.loss(first, 0)[0])


def test_batches_go_through_every_event_and_draw_what_was_not_had() -> None:
    events = some_events(50)
    batches = Batches(events, SIZES.items, 8, seed=3)
    seen = torch.cat([batches(step)[0].rows for step in range(batches.per_epoch)])
    assert sorted(seen.tolist()) == list(range(50))
    had = set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    for step in (9, 2, 30):
        batch, epoch = batches(step)
        again = Batches(events, SIZES.items, 8, seed=3)(step)[0]
        assert epoch == step // batches.per_epoch and torch.equal(batch.rows, again.rows)
        assert torch.equal(batch.negative, again.negative)
        for user, item in zip(batch.events.user.tolist(), batch.negative.tolist(), strict=True):
            full = sum(u == user for u, _ in had) == SIZES.items
            assert (item == -1) == full and (user, item) not in had


@pytest.mark.parametrize("kind", kinds())
def test_all_are_asked_alike(kind: str) -> None:
    """All items or some, in any batch, with more padding, for someone unknown, and without any word."""
    model = made(kind, **({} if kind == "popularity" else {"dim": 8}))
    model.requires_grad_(False).eval().ready()
    users, words = torch.tensor([0, 3, 4, -1]), torch.tensor([[1, 2], [0, 0], [3, 0], [0, 0]])
    table = model.scores(users, words)
    assert table.shape == (4, SIZES.items) and bool(table.isfinite().all())
    some = torch.tensor([[5, 0, 0]]).expand(4, -1)
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(model.scores(users, words, some), table.gather(1, some), **close)
    torch.testing.assert_close(model.scores(users, F.pad(words, (0, 3))), table, **close)
    torch.testing.assert_close(model.scores(users[1:2], words[1:2]), table[1:2], **close)
    torch.testing.assert_close(model.scores(users[1:2], words[1:2, :0]), table[1:2], **close)
    said = model.word_scores(users)
    assert said.shape == (4, SIZES.words) and bool((said[:, 0] == -math.inf).all())
    assert not bool(model.word_scores(users[:3], torch.tensor([0, 1, 2])).isnan().any())


def test_words_are_counted_where_a_model_has_no_opinion() -> None:
    events = Events(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), torch.tensor([[2, 2, 0], [3, 0, 0], [4, 4, 4]]))
    order = made("mf", events).word_scores(torch.tensor([0, -1])).argsort(1, descending=True)
    assert order[0].tolist() == [2, 3, 4, 1, 0]
    assert order[1, 0] == 4


def exact_model(draws: int, **settings: Any) -> Diffusion:
    """A joint whose law is known: with these connections p(i | x_t, u, q) is Bayes' rule for Gaussian noise."""
    model: Diffusion = made("diffusion", dim=4, width=8, samples=draws, steps=40, end=0.5, **settings)
    with torch.no_grad():
        model.network.says.zero_()
        item, user, query = (STREAMS.index(s) for s in ("item", "user", "query"))
        model.network.says[item, item] = math.sqrt(4)
        model.network.says[item, user] = 0.8
        model.network.says[item, query] = 0.6 if settings.get("search") else 0.0
        model.item_bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.2, 0.0, 0.3]))
    model.requires_grad_(False).eval().ready()
    return model


@pytest.mark.parametrize("words", [[0, 0], [2, 3]])
def test_sampling_by_roles_gives_the_exact_distribution(words: list[int]) -> None:
    """p(i | u) with the query sampled, and p(i | u, q) with it given, by the engine's solver, against Bayes' rule."""
    draws = 1500
    model = exact_model(draws)
    if words[0]:
        model.network.says[STREAMS.index("item"), STREAMS.index("query")] = 0.6
    users, asked = torch.tensor([0, 2]), torch.tensor([words, words])
    found = model.scores(users, asked).exp()
    direct = model.log_items(model.ask(users, asked)["item"]).softmax(1)
    assert float(found.sum(1).sub(1).abs().max()) < 1e-5
    assert float((found - direct).abs().max()) < 4 * 0.5 / draws**0.5
    assert float((direct[0] - direct[1]).abs().max()) > 0.05  # there is something to get wrong


def test_a_draw_to_the_end_is_an_items_vector_as_often_as_it_should() -> None:
    model = exact_model(1)
    object.__setattr__(model.config, "end", 0.02)
    users = torch.zeros(800, dtype=torch.int64)
    given = {"user": model.now["users"][users]}
    x = model.draw(given, ("item",), list(range(800)))["item"]
    nearest = (x @ model.now["items"].T).argmax(1)
    p = model.log_items(model.ask(users[:1], torch.zeros(1, 1, dtype=torch.int64))["item"]).softmax(1)[0]
    share = torch.bincount(nearest, minlength=SIZES.items) / 800
    assert float((share - p).abs().max()) < 4 * 0.5 / 800**0.5


def test_a_users_list_is_the_same_in_any_batch_when_sampled() -> None:
    model = exact_model(8)
    users, words = torch.tensor([0, 1, -1, 2]), torch.tensor([[0], [2], [0], [1]])
    together = model.scores(users, words)
    for row in range(4):
        torch.testing.assert_close(model.scores(users[row : row + 1], words[row : row + 1])[0], together[row])


@pytest.mark.parametrize(
    ("user", "word", "levels"),
    [(0, 2, (0.0, 0.0, 0.5)), (0, 0, (0.0, 0.5, 0.5)), (-1, 2, (1.0, 0.0, 0.5)), (-1, 0, (1.0, 0.5, 0.5))],
)
def test_the_last_question_has_the_timestep_of_every_role(user: int, word: int, levels: tuple[float, ...]) -> None:
    model, asked = exact_model(2), list[dict[str, Tensor]]()
    model.network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    model.scores(torch.tensor([user]), torch.tensor([[word]]))
    assert tuple(float(asked[-1][s][0]) for s in STREAMS) == levels


def test_guidance_multiplies_by_what_the_givens_say() -> None:
    plain, guided = exact_model(0), exact_model(0, guidance=2.0)
    users, words = torch.tensor([1]), torch.tensor([[0]])
    said = [m.scores(users, words).log_softmax(1) for m in (plain, guided)]
    alone = plain.scores(NOBODY, words).log_softmax(1)
    torch.testing.assert_close(said[1], (said[0] + 2 * (said[0] - alone)).log_softmax(1))
    sampled, pushed = exact_model(300), exact_model(300, guidance=2.0)
    gain = pushed.scores(users, words) - sampled.scores(users, words)
    ratio = (said[0] - alone)[0]
    assert float(gain[0, ratio.argmax()]) > float(gain[0, ratio.argmin()])


def test_the_denoiser_keeps_what_is_given_and_means_what_is_likely() -> None:
    model = exact_model(0)
    x = {s: torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k, s in enumerate(STREAMS)}
    clean = LatentDenoiser(model, STREAMS)(x, {"user": torch.zeros(3), "query": torch.ones(3), "item": torch.ones(3)})
    assert torch.equal(clean["user"], x["user"])
    out = model.network(x, {"user": torch.zeros(3), "query": torch.ones(3), "item": torch.ones(3)})
    p = (out["item"] @ model.now["items"].T + model.item_bias).softmax(1)
    torch.testing.assert_close(clean["item"], 2 * p @ model.now["items"])
    rates = (out["query"] @ model.now["words"].T + model.word_bias).exp()[:, 1:]
    torch.testing.assert_close(clean["query"], rates @ model.now["words"][1:])


def test_the_audience_of_an_item_is_one_more_role() -> None:
    """p(user | item), the user sampled, the query ignored: users as often as the model says, by their events."""
    model, draws = exact_model(0), 800
    user = STREAMS.index("user")
    with torch.no_grad():
        model.network.says[user, user], model.network.says[user, STREAMS.index("item")] = 2.0, 0.5
    object.__setattr__(model.config, "end", 0.02)
    item = torch.zeros(draws, dtype=torch.int64)
    x = model.draw({"item": 2 * model.now["items"][item]}, ("user",), list(range(draws)))["user"]
    users, events = model.now["users"][:-1], torch.bincount(model.train_events.user, minlength=SIZES.users)
    p = (0.5 * 2 * model.now["items"][0] @ users.T / 2 + events.log()).softmax(0)
    share = torch.bincount(torch.cdist(x, users).argmin(1), minlength=SIZES.users) / draws
    assert float((share - p).abs().max()) < 4 * 0.5 / draws**0.5
    assert float(p.max() - p[p > 0].min()) > 0.1  # there is something to get wrong


def test_training_says_nothing_of_a_query_that_is_not_there() -> None:
    events = some_events()
    quiet = Events(events.user, events.item, torch.zeros_like(events.words))
    model = made("masked", quiet, dim=8)
    _, parts = model.loss(whole_batch(quiet), 0)
    assert float(parts["query"]) == 0.0 and all(bool(x.isfinite()) for x in parts.values())


def test_a_long_query_at_a_small_timestep_overflows_nothing() -> None:
    model = made("diffusion", dim=64)
    words = model.vectors()[1]
    assert bool(model.log_rates(1e4 * words, words)[:, 1:].exp().isfinite().all())


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("mf", {"dim": 0}, "above 0"),
        ("mf", {"dim": "wide"}, "dim of mf must be a whole number"),
        ("mf", {"dim": 2.5}, "dim of mf must be a whole number"),
        ("mf", {"l2": math.nan}, "l2 of mf must be a number"),
        ("mf", {"layers": 2}, "mf has no setting layers; it has dim"),
        ("mf", {"objective": "hinge"}, "bpr or softmax"),
        ("lightgcn", {"layers": -1}, "0 layers or more"),
        ("uditsr", {"masked": 1}, "true or false"),
        ("masked", {"width": 3}, "even"),
        ("diffusion", {"process": "brownian"}, "there is no process"),
        ("diffusion", {"end": 1.0}, "end lies between"),
        ("diffusion", {"guidance": -1.0}, "guidance must lie"),
        ("tree", {}, "there is no model 'tree'; there are"),
    ],
)
def test_settings_that_make_no_model_are_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        configure(kind, settings)

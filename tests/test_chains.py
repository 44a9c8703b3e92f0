"""Chains on a closed-form mixture: which law each has, and where interpolation begins and ends."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unidiffuser.chains import Link, follow, gibbs, interpolate, link_seeds, relay, sampler, slerp
from unidiffuser.joint import Joint, generator, modalities_of
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Cosine

STDS = {"a.x": 0.5, "a.y": 0.5, "b": 0.5, "c": 0.5}


def mixture() -> GaussianMixture:
    """Three components that overlap, over "a" (two streams), "b" and "c"."""
    means = {
        "a.x": torch.tensor([[-1.0], [0.0], [1.0]]),
        "a.y": torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.5, 0.5]]),
        "b": torch.tensor([[-1.0], [0.0], [1.0]]),
        "c": torch.tensor([[0.8], [-0.8], [0.0]]),
    }
    stds = {stream: torch.tensor(std) for stream, std in STDS.items()}
    return GaussianMixture(process=Cosine(), weights=torch.tensor([0.2, 0.3, 0.5]), means=means, stds=stds)


MIX = mixture()
SHAPES = {stream: tuple(mean.shape[1:]) for stream, mean in MIX.means.items()}


def posterior(given: Joint) -> Tensor:
    """p(component | clean streams), (B, K), written out once more from the formula."""
    logs = MIX.weights.log()
    for stream, x in given.items():
        logs = logs - 0.5 * ((x[:, None] - MIX.means[stream]) / STDS[stream]).square().sum(-1)
    return torch.softmax(logs, 1)


def exact(sampled: tuple[str, ...], given: Joint, seeds: Sequence[int]) -> Joint:
    """A draw from the exact conditional law, all rows from the first seed."""
    g = generator(seeds[0], "exact")
    k = torch.multinomial(posterior(given), 1, generator=g)[:, 0]
    return {
        stream: MIX.means[stream][k] + STDS[stream] * torch.randn(len(k), *shape, generator=g, dtype=torch.float64)
        for stream, shape in SHAPES.items()
        if modalities_of([stream])[0] in sampled
    }


def flat(joint: Joint) -> Tensor:
    """All numbers of each sample and their products, whose means are the first two moments."""
    x = torch.cat([joint[stream].double() for stream in SHAPES], 1)
    return torch.cat([x, (x[:, :, None] * x[:, None, :]).flatten(1)], 1)


def worst_z(found: Joint, truth: Joint) -> float:
    """The largest difference of moments in standard errors."""
    a, b = flat(found), flat(truth)
    return float(((a.mean(0) - b.mean(0)) / torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))).abs().max())


def test_every_link_of_gibbs_is_given_all_others() -> None:
    once = [Link(("a",), ("b", "c", "d")), Link(("b", "c"), ("a", "d")), Link(("d",), ("a", "b", "c"))]
    assert gibbs(["a", ("b", "c"), "d"], rounds=2) == once * 2


def test_gibbs_tends_to_the_joint_law_from_any_start() -> None:
    n = 4000
    start = {stream: torch.full((n, *shape), 5.0, dtype=torch.float64) for stream, shape in SHAPES.items()}
    states = list(follow(exact, start, gibbs(["a", ("b", "c")], rounds=40), range(n)))
    truth = MIX.sample(100_000, torch.Generator().manual_seed(0))
    assert worst_z(states[1], truth) > 20  # after one round the start is still felt
    assert worst_z(states[-1], truth) < 4.5  # 30 moments, false alarm 2e-4


def test_a_sampled_gibbs_chain_keeps_the_joint_law() -> None:
    n = 3000
    start = MIX.sample(n, torch.Generator().manual_seed(1))
    draw = sampler(MIX, MIX.process, SHAPES, steps=30)
    *_, state = follow(draw, start, gibbs(["a", "b", "c"], rounds=2), range(n))
    assert worst_z(state, MIX.sample(100_000, torch.Generator().manual_seed(2))) < 4.5
    assert all(float((state[s] - start[s]).abs().min(1).values.max()) > 0.1 for s in SHAPES)


def test_a_variation_has_the_law_of_its_two_links() -> None:
    n = 3000
    start = {"b": torch.full((n, 1), -0.4)}
    states = list(follow(sampler(MIX, MIX.process, SHAPES, steps=30), start, relay(["b", "a", "b"]), range(n)))
    # p(b' | b) = sum_k' E_{a | b}[p(k' | a)] N(b'; mu_k', std^2)
    a = exact(("a",), {"b": torch.full((100_000, 1), -0.4)}, [0])
    weights = posterior(a).mean(0)
    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)
    law = (weights * torch.special.ndtr((grid[:, None] - MIX.means["b"].T) / STDS["b"])).sum(1)
    found = (states[-1]["b"].double() <= grid).double().mean(0)
    assert float((found - law).abs().max()) < 2.0 / math.sqrt(n)  # Kolmogorov-Smirnov, false alarm 7e-4
    assert [sorted(state) for state in states] == [["a.x", "a.y", "b"]] * 2
    assert torch.equal(states[0]["b"], start["b"])


def test_a_chain_is_the_same_in_any_batch_and_its_links_differ() -> None:
    draw = sampler(MIX, MIX.process, SHAPES, steps=8, dtype=torch.float64)
    start = MIX.sample(4, torch.Generator().manual_seed(3))
    whole = list(follow(draw, start, gibbs(["a", "b"], rounds=2), [7, 8, 9, 10]))
    alone = list(follow(draw, {s: x[2:3] for s, x in start.items()}, gibbs(["a", "b"], rounds=2), [9]))
    for x, y in zip(whole, alone, strict=True):
        for stream in SHAPES:
            torch.testing.assert_close(x[stream][2:3], y[stream], rtol=1e-12, atol=1e-12)
    assert len({seed for i in range(50) for seed in link_seeds([7, 8], i)}) == 100


def test_a_chain_is_lazy_and_may_be_endless() -> None:
    def forever() -> Any:
        while True:
            yield from relay(["a", "b", "a"])

    start = MIX.sample(2, torch.Generator().manual_seed(4))
    walk = follow(exact, start, forever(), [1, 2])
    assert len([next(walk) for _ in range(5)]) == 5


@pytest.mark.parametrize("of", [("a",), ("a", "b"), ("b",)])
@pytest.mark.parametrize("held", [True, False])
def test_interpolation_begins_and_ends_at_its_inputs(of: tuple[str, ...], held: bool) -> None:
    first, second = (MIX.sample(5, torch.Generator().manual_seed(seed)) for seed in (5, 6))
    if not held:
        first, second = ({s: x for s, x in end.items() if modalities_of([s])[0] in of} for end in (first, second))
    options: dict[str, Any] = {"steps": 60, "dtype": torch.float64}
    ways = list(interpolate(MIX, MIX.process, SHAPES, first, second, of, [0, 0.5, 1], range(5), **options))
    for way, end in ((ways[0], first), (ways[-1], second)):
        assert way.keys() == end.keys()
        for stream in end:
            assert float((way[stream] - end[stream]).abs().max()) < 0.02
    middle = torch.cat([ways[1][s] - ways[0][s] for s in first], 1).norm(dim=1)
    whole = torch.cat([ways[2][s] - ways[0][s] for s in first], 1).norm(dim=1)
    assert bool((middle > 0.05 * whole).all())


def test_slerp_keeps_to_the_sphere() -> None:
    a, b = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    b = b * a.flatten(1).norm(dim=1).reshape(3, 1, 1) / b.flatten(1).norm(dim=1).reshape(3, 1, 1)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, b, 0.3).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: relay(["a"]), "from one modality to another"),
        (lambda: relay(["a", "a"]), "from one modality to another"),
        (lambda: gibbs(["a"], 1), "two or more blocks"),
        (lambda: gibbs(["a", ("a", "b")], 1), "different modalities"),
        (lambda: gibbs(["a", "b"], 0), "at least one round"),
        (lambda: list(follow(exact, {}, [Link(("a",), ("b",))], [1])), "link 1 of the chain needs b"),
        (lambda: list(ends(fractions=[1.5])), "between 0 and 1"),
        (lambda: list(ends(of=("c",))), "c is missing"),
        (lambda: list(ends(second={})), "same streams"),
        (lambda: list(ends(solver="ancestral")), "cannot be inverted"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def ends(**change: Any) -> Any:
    end = {"b": torch.zeros(1, 1)}
    options: dict[str, Any] = {"first": end, "second": end, "of": ("b",), "fractions": [0.5], "seeds": [1]} | change
    return interpolate(MIX, MIX.process, SHAPES, **options)

"""The score against the exact log densities of a mixture."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unidiffuser.agreement import Information, Quadrature, pointwise_information, use_of_others
from unidiffuser.joint import Joint, modality_of
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import PROCESSES, Cosine, Process

PAIRS = 150


def mixture(process: Process) -> GaussianMixture:
    """Three modalities: "a" (two streams) and "b" share the component, "c" stands alone; so does a.grid[0, 0, 0]."""
    g = torch.Generator().manual_seed(7)
    means = {"a.grid": torch.randn(3, 2, 2, 2, generator=g), "a.vector": torch.randn(3, 3, generator=g)}
    means |= {"b": 1.5 * torch.randn(3, 2, generator=g), "c": torch.ones(3, 2)}
    means["a.grid"][:, 0, 0, 0] = 0.3
    stds = {stream: torch.tensor(0.6) for stream in means}
    return GaussianMixture(process=process, weights=torch.tensor([0.5, 0.3, 0.2]), means=means, stds=stds)


def only(joint: Joint, *modalities: str) -> Joint:
    return {stream: x for stream, x in joint.items() if modality_of(stream) in modalities}


def true_bits(mix: GaussianMixture, joint: Joint, of: str, *about: str) -> Tensor:
    t = dict.fromkeys("abc", torch.zeros(len(joint["b"]), dtype=torch.float64))
    parts = (mix.log_prob(only(joint, *names), t) for names in ((of, *about), (of,), about))
    both, left, right = parts
    return (both - left - right) / math.log(2)


def score(mix: GaussianMixture, joint: Joint, of: str, about: Any, n: int = PAIRS, **options: Any) -> Information:
    shapes = {stream: tuple(mean.shape[1:]) for stream, mean in mix.means.items()}
    options = {"seeds": range(n), "batch": 1000} | options
    return pointwise_information(mix, mix.process, shapes, joint, of, about, **options)


@pytest.mark.parametrize(
    "process, of, about",
    [*((name, "a", ("b",)) for name in PROCESSES), ("cosine", "b", ("a",)), ("cosine", "a", ("b", "c"))],
)
def test_score_is_the_exact_information_within_its_error_bar(process: str, of: str, about: tuple[str, ...]) -> None:
    mix = mixture(PROCESSES[process]())
    joint = mix.sample(PAIRS, torch.Generator().manual_seed(1))
    found = score(mix, joint, of, about, samples=256)
    off = found.bits - true_bits(mix, joint, of, *about)
    assert abs(float(off.mean())) < 3.5 * float(off.std()) / PAIRS**0.5  # unbiased; false alarm 1 in 2000
    assert 0.7 < float(off.square().mean().sqrt() / found.error.square().mean().sqrt()) < 1.4
    assert float((off.abs() < 3 * found.error).double().mean()) > 0.95


def test_more_draws_come_nearer_to_the_truth() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(20, torch.Generator().manual_seed(2))
    elsewhere = Quadrature(low=-7.0, high=4.0, centre=-0.3, width=1.3)
    found = score(mix, joint, "a", "b", n=20, samples=1500, quadrature=elsewhere)
    off = found.bits - true_bits(mix, joint, "a", "b")
    assert float(off.square().mean().sqrt()) < 0.2
    assert abs(float(off.mean())) < 3.5 * float(off.std()) / 20**0.5
    assert float(found.error.mean()) == pytest.approx(
        float(score(mix, joint, "a", "b", n=20).error.mean()) / 5, rel=0.3
    )


def test_true_pairs_score_higher_than_shuffled_ones_as_often_as_they_should() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(PAIRS, torch.Generator().manual_seed(3))
    shuffled = joint | {"b": joint["b"].roll(1, 0)}

    def auc(true: Tensor, other: Tensor) -> float:
        return float((true[:, None] > other[None, :]).double().mean())

    exact = auc(true_bits(mix, joint, "a", "b"), true_bits(mix, shuffled, "a", "b"))
    assert exact > 0.75
    assert auc(score(mix, joint, "a", "b").bits, score(mix, shuffled, "a", "b").bits) == pytest.approx(exact, abs=0.05)


def test_the_map_sums_to_the_bits_and_is_zero_where_nothing_is_told() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(30, torch.Generator().manual_seed(4))
    found = score(mix, joint, "a", "b", n=30)
    assert {stream: tuple(x.shape) for stream, x in found.maps.items()} == {
        "a.grid": (30, 2, 2, 2),
        "a.vector": (30, 3),
    }
    total = torch.stack([x.flatten(1).sum(1) for x in found.maps.values()]).sum(0)
    torch.testing.assert_close(total, found.bits)
    assert float(found.maps["a.grid"][:, 0, 0, 0].abs().max()) < 1e-9
    assert float(found.maps["a.grid"].abs().mean()) > 0.01


def test_what_is_independent_tells_nothing() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(10, torch.Generator().manual_seed(5))
    assert float(score(mix, joint, "a", "c", n=10).bits.abs().max()) < 1e-9


def test_a_pair_scores_the_same_in_any_batch_and_whatever_else_is_there() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(5, torch.Generator().manual_seed(6))
    whole = score(mix, joint, "a", "b", n=5, samples=8)
    last = score(mix, {s: x[3:] for s, x in joint.items()}, "a", "b", seeds=[3, 4], samples=8, batch=3)
    torch.testing.assert_close(last.bits, whole.bits[3:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last.error, whole.error[3:], rtol=1e-9, atol=1e-12)
    alone = score(mix, only(joint, "a", "b"), "a", "b", n=5, samples=8)
    assert torch.equal(alone.bits, whole.bits)


def test_use_of_others_sees_who_tells_something() -> None:
    mix = mixture(Cosine())
    joint = mix.sample(400, torch.Generator().manual_seed(7))
    use = use_of_others(mix, mix.process, joint, range(400), batch=150)
    for modality in ("a", "b"):
        assert use[modality]["given"] < 0.98 * use[modality]["ignored"]
        assert use[modality]["ignored"] < use[modality]["swapped"]
    assert use["c"]["given"] == pytest.approx(use["c"]["ignored"], rel=1e-9)
    # "c" is one Gaussian: the error of its clean estimate is var sigma^2 / (alpha^2 var + sigma^2).
    t = torch.tensor([0.5], dtype=torch.float64)
    signal, noise = 0.36 * float(mix.process.alpha(t)) ** 2, float(mix.process.sigma(t)) ** 2
    assert use["c"]["timesteps"]["0.5"]["given"] == pytest.approx(0.36 * noise / (signal + noise), rel=0.15)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"of": "z"}, "no modality 'z'"),
        ({"about": ("a", "b")}, "different others"),
        ({"about": ()}, "different others"),
        ({"samples": 1}, "noise draws"),
        ({"n": 3}, "one row a seed"),
        ({"n": 0}, "at least one"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change: dict[str, Any], sentence: str) -> None:
    mix = mixture(Cosine())
    joint = mix.sample(2, torch.Generator().manual_seed(8))
    with pytest.raises(ValueError, match=sentence):
        score(mix, joint, **{"of": "a", "about": "b", "n": 2, **change})


def test_a_bad_range_is_refused() -> None:
    with pytest.raises(ValueError, match="not empty"):
        Quadrature(low=1.0, high=1.0)
    with pytest.raises(ValueError, match="above 0"):
        Quadrature(width=0.0)

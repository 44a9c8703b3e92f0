"""Distances of samples against closed forms and an independent implementation."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg, stats

from unidiffuser.distances import coverage, frechet, gaussian_gram, kernel, two_sample
from unidiffuser.metrics import separation

Array = NDArray[np.float64]


def with_moments(n: int, mean: Array, covariance: Array, seed: int) -> Array:
    """A sample whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.inv(np.linalg.cholesky(np.cov(x.T)))
    return np.asarray(x @ white.T @ np.linalg.cholesky(covariance).T + mean)


def closed_form(m: Array, c: Array, m2: Array, c2: Array) -> float:
    return float(np.square(m - m2).sum() + np.trace(c + c2 - 2 * linalg.sqrtm(c @ c2).real))


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    a = np.array([[2.0, 0.7, 0.1], [0.7, 1.0, -0.3], [0.1, -0.3, 0.5]])
    b = np.array([[1.0, -0.4, 0.0], [-0.4, 1.5, 0.6], [0.0, 0.6, 3.0]])
    assert not np.allclose(a @ b, b @ a)
    m, m2 = np.array([1.0, 0, -2]), np.array([0.5, 1, 1])
    found = dict(frechet(with_moments(40, m, a, 0), with_moments(60, m2, b, 1)))
    assert found["value"] == pytest.approx(closed_form(m, a, m2, b), rel=1e-9)
    same = dict(frechet(with_moments(40, m, a, 2), with_moments(60, m, a, 3)))
    assert abs(same["value"]) < 1e-9


@pytest.mark.parametrize("n, m", [(12, 30), (30, 12), (40, 50)])
def test_frechet_and_kernel_are_those_of_torchmetrics(n: int, m: int) -> None:
    """Also with fewer samples than dimensions."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Itself(torch.nn.Module):
        num_features = 20

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    g = np.random.default_rng(n)
    x, y = g.normal(size=(n, 20)), 0.5 + 2 * g.normal(size=(m, 20)) @ g.normal(size=(20, 20)) / 5
    fid = FrechetInceptionDistance(feature=Itself()).set_dtype(torch.float64)
    size = min(n, m)
    kid = KernelInceptionDistance(feature=Itself(), subsets=1, subset_size=size).set_dtype(torch.float64)
    fid.update(torch.from_numpy(x), real=True)
    fid.update(torch.from_numpy(y), real=False)
    assert dict(frechet(x, y))["value"] == pytest.approx(float(fid.compute()), rel=1e-4)
    kid.update(torch.from_numpy(x[:size]), real=True)
    kid.update(torch.from_numpy(y[:size]), real=False)
    assert dict(kernel(x[:size], y[:size]))["value"] == pytest.approx(float(kid.compute()[0]), rel=1e-4)


def test_the_kernel_distance_is_unbiased() -> None:
    """One dimension: E (x y + 1)^3 = sum_j C(3, j) E x^j E y^j, with the moments of a normal variable."""

    def expected(a: float, b: float) -> float:
        moments = [[1.0, m, m**2 + 1, m**3 + 3 * m] for m in (a, b)]
        return sum(math.comb(3, j) * moments[0][j] * moments[1][j] for j in range(4))

    g = np.random.default_rng(1)
    truth = expected(0, 0) + expected(0.6, 0.6) - 2 * expected(0, 0.6)
    values = [dict(kernel(g.normal(size=(5, 1)), 0.6 + g.normal(size=(7, 1))))["value"] for _ in range(4000)]
    assert float(np.mean(values)) == pytest.approx(truth, abs=4 * float(np.std(values)) / 4000**0.5)
    nothing = [dict(kernel(g.normal(size=(5, 3)), g.normal(size=(5, 3))))["value"] for _ in range(4000)]
    assert abs(float(np.mean(nothing))) < 4 * float(np.std(nothing)) / 4000**0.5


def test_errors_are_the_spread_over_samples() -> None:
    g = np.random.default_rng(2)
    for metric, least, most in ((frechet, 0.6, 1.6), (kernel, 0.75, 1.35)):
        found = [dict(metric(g.normal(size=(80, 3)), 0.7 + g.normal(size=(60, 3)))) for _ in range(150)]
        spread = float(np.std([each["value"] for each in found]))
        assert least < float(np.mean([each["error"] for each in found])) / spread < most, metric
    areas = [dict(separation(0.8 + g.normal(size=30), g.normal(size=40))) for _ in range(300)]
    spread = float(np.std([each["auc"] for each in areas]))
    assert float(np.mean([each["error"] for each in areas])) == pytest.approx(spread, rel=0.15)


def test_precision_and_recall_see_what_is_made_up_and_what_is_left_out() -> None:
    g = np.random.default_rng(3)
    left, right = g.normal(size=(200, 4)), 20 + g.normal(size=(200, 4))
    both = np.concatenate([left[:100], right[:100]])
    rates = {name: x["rate"] for name, x in coverage(left[100:], both)}
    assert rates["precision"] > 0.8 and rates["recall"] < 0.55
    rates = {name: x["rate"] for name, x in coverage(both, left[100:])}
    assert rates["precision"] < 0.55 and rates["recall"] > 0.8
    assert {x["rate"] for _, x in coverage(left, 99 + right)} == {0.0}


def test_the_area_is_that_of_the_closed_form_and_of_scipy() -> None:
    g = np.random.default_rng(4)
    true, other = 1.0 + g.normal(size=2000), g.normal(size=3000)
    found = dict(separation(true, other))
    assert found["auc"] == pytest.approx(stats.norm.cdf(1 / 2**0.5), abs=3 * found["error"])
    assert found["error"] < 0.01
    few = np.array([0.0, 1, 1, 2]), np.array([1.0, 1, 0])
    assert dict(separation(*few))["auc"] == pytest.approx(stats.mannwhitneyu(*few).statistic / 12)
    assert dict(separation([1, 2], [0, -1]))["auc"] == 1.0


def test_the_two_sample_test_is_right_as_often_as_it_says() -> None:
    g = np.random.default_rng(5)

    def p(shift: float) -> float:
        x = np.concatenate([g.normal(size=(20, 3)), shift + g.normal(size=(20, 3))])
        return dict(two_sample(gaussian_gram(x), 20))["p"]

    alike = [p(0.0) for _ in range(150)]
    assert stats.kstest(alike, "uniform").pvalue > 0.001
    assert float(np.mean([p(1.0) < 0.05 for _ in range(20)])) > 0.9


def test_samples_that_cannot_be_compared_are_refused() -> None:
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="rows of as many numbers"):
        dict(frechet(x, np.zeros((5, 3))))
    with pytest.raises(ValueError, match="needs 3 of each"):
        dict(kernel(x, x[:2]))
    with pytest.raises(ValueError, match="needs 4 of each"):
        dict(coverage(x[:3], x))
    with pytest.raises(ValueError, match="3 of each"):
        dict(two_sample(np.eye(4), 2))
    with pytest.raises(ValueError, match="two of each"):
        dict(separation([1.0], [0.0, 1.0]))

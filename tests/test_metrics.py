"""Metrics against an independent implementation, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from unidiffuser.metrics import proportion, total_variation


@pytest.mark.parametrize("hits, n", [(0, 8), (8, 8), (3, 8), (950, 1000), (1, 10_000)])
def test_proportion_is_the_wilson_interval_of_scipy(hits: int, n: int) -> None:
    truth = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = dict(proportion(hits, n))
    assert found["rate"] == hits / n
    assert (found["low"], found["high"]) == pytest.approx((truth.low, truth.high), abs=1e-6)


def test_proportion_of_nothing_is_unknown() -> None:
    found = dict(proportion(0, 0))
    assert math.isnan(found["rate"]) and (found["low"], found["high"]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 of 3"):
        dict(proportion(5, 3))


def test_total_variation_by_hand() -> None:
    law = {"coin": {"head": 0.5, "tail": 0.5}, "die": {str(k): 1 / 6 for k in range(6)}}
    counts = {"coin": {"head": 3, "edge": 1}, "die": {str(k): 7 for k in range(6)}}
    found = dict(total_variation(counts, law))
    assert found == pytest.approx({"coin": 0.5, "die": 0.0, "worst": 0.5})
    assert dict(total_variation({}, law))["coin"] == 1.0


def test_total_variation_of_true_draws_shrinks_as_the_root_of_n() -> None:
    law = {"die": {str(k): 1 / 6 for k in range(6)}}
    rng = np.random.default_rng(0)
    means = []
    for n in (100, 10_000):
        draws = rng.multinomial(n, [1 / 6] * 6, size=200)
        means.append(
            np.mean([dict(total_variation({"die": dict(zip("012345", d, strict=True))}, law))["worst"] for d in draws])
        )
    assert means[0] / means[1] == pytest.approx(10, rel=0.1)

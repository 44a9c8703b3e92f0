"""Roles as timesteps, and the statistics of the timesteps that training draws."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, chisquare

from unidiffuser.timesteps import Roles, assign_roles, draw_timesteps

NAMES = ("image", "text", "sound")


def draws(n: int = 200_000, ends: float = 0.1, seed: int = 0) -> dict[str, np.ndarray]:
    found = draw_timesteps(NAMES, n, torch.Generator().manual_seed(seed), ends=ends)
    assert list(found) == list(NAMES) and all(t.shape == (n,) for t in found.values())
    return {m: t.numpy() for m, t in found.items()}


def cells(t: np.ndarray) -> np.ndarray:
    """0: the clean end, 1 to 8: eighths of the open interval, 9: the noise end."""
    return np.where(t == 0, 0, np.where(t == 1, 9, 1 + (t * 8).astype(int)))


# Every p-value below 1e-4 fails: a false alarm in 10,000 seeds, and the seed is fixed.
@pytest.mark.parametrize("pair", list(itertools.combinations(NAMES, 2)))
def test_timesteps_are_independent(pair: tuple[str, str]) -> None:
    t = draws()
    table, _, _ = np.histogram2d(cells(t[pair[0]]), cells(t[pair[1]]), bins=10, range=[(0, 10)] * 2)
    assert chi2_contingency(table).pvalue > 1e-4
    table += np.diag(np.full(10, 0.002 * t[pair[0]].size))  # the test bites: 2 % of equal cells too many are seen
    assert chi2_contingency(table).pvalue < 1e-4


def test_all_three_together_are_independent() -> None:
    corner = np.stack([np.clip(cells(t), 0, 9) // 5 for t in draws().values()])
    table = np.bincount(corner[0] * 4 + corner[1] * 2 + corner[2], minlength=8).reshape(2, 2, 2)
    assert chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("ends", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_are_uniform_between_their_ends(name: str, ends: float) -> None:
    t = draws(ends=ends)[name]
    inside = t[(t > 0) & (t < 1)]
    assert chisquare(np.histogram(inside, bins=50, range=(0, 1))[0]).pvalue > 1e-4
    for end in (0, 1):
        assert binomtest(int((t == end).sum()), len(t), ends or 1e-6).pvalue > 1e-4


def test_draws_repeat_with_the_seed() -> None:
    first, again, other = draws(1000), draws(1000), draws(1000, seed=1)
    assert all((first[m] == again[m]).all() and (first[m] != other[m]).any() for m in NAMES)


@pytest.mark.parametrize("ends", [-0.1, 0.51, float("nan")])
def test_a_share_of_ends_out_of_range_is_refused(ends: float) -> None:
    with pytest.raises(ValueError, match="share of draws"):
        draw_timesteps(NAMES, 4, torch.Generator(), ends=ends)


@pytest.mark.parametrize("modalities", [NAMES[:1], NAMES[:2], NAMES])
def test_roles_reach_every_distribution_once(modalities: tuple[str, ...]) -> None:
    """Each modality is sampled, given or ignored, and one at least is sampled: 3^M - 2^M distributions."""
    found = set()
    for choice in itertools.product(("sampled", "given", "ignored"), repeat=len(modalities)):
        sampled = [m for m, role in zip(modalities, choice, strict=True) if role == "sampled"]
        given = [m for m, role in zip(modalities, choice, strict=True) if role == "given"]
        if sampled:
            roles = assign_roles(modalities, sampled, given)
            found.add((roles.sampled, tuple(roles.held.items())))
    assert len(found) == 3 ** len(modalities) - 2 ** len(modalities)


def test_roles_are_timesteps() -> None:
    roles = assign_roles(NAMES, ["image"], ["text"])
    assert roles == Roles(sampled=("image",), held={"text": 0.0, "sound": 1.0})
    assert (roles.given, roles.ignored) == (("text",), ("sound",))
    loose = assign_roles(NAMES, ["image"], ["text", "sound"], {"text": 0.3, "sound": 1.0})
    assert loose.held == {"text": 0.3, "sound": 1.0}
    assert (loose.given, loose.ignored) == (("text",), ("sound",))


@pytest.mark.parametrize(
    "sampled, given, looseness, says",
    [
        ([], ["text"], {}, "nothing to sample"),
        (["smell"], [], {}, "no modality 'smell'; it has image, text, sound"),
        (["image"], ["image"], {}, "both sampled and given"),
        (["image", "image"], [], {}, "named twice"),
        (["image"], [], {"text": 0.5}, "needs 'text' to be given"),
        (["image"], ["text"], {"text": 1.5}, "between 0"),
        (["image"], ["text"], {"text": float("nan")}, "between 0"),
    ],
)
def test_wrong_roles_are_refused(sampled: list[str], given: list[str], looseness: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        assign_roles(NAMES, sampled, given, looseness)

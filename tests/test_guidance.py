"""Guidance against its formula written by hand, with the mixture's exact marginals as weak branches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unidiffuser.guidance import Guidance, guided
from unidiffuser.joint import Joint, cat_joints
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Cosine
from unidiffuser.timesteps import Roles, assign_roles

NAMES = ("a", "b", "c")
MIX = GaussianMixture(
    process=Cosine(),
    weights=torch.tensor([0.3, 0.5, 0.2]),
    means={
        "a.x": torch.tensor([[-1.0], [1.0], [0.0]]),
        "a.y": torch.tensor([[0.5, 0.0], [0.1, -1.0], [0.3, 1.0]]),
        "b": torch.tensor([[1.0], [-1.0], [0.2]]),
        "c": torch.tensor([[0.0], [0.8], [-1.0]]),
    },
    stds={s: torch.tensor(0.4) for s in ("a.x", "a.y", "b", "c")},
)
GENERATOR = torch.Generator().manual_seed(0)
XT = MIX.sample(5, GENERATOR)
NOISE = {s: torch.randn(x.shape, generator=GENERATOR, dtype=torch.float64) for s, x in XT.items()}


class Counting:
    """The mixture as a Denoiser that notes the number of rows of every call."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        self.rows.append(len(xt["b"]))
        return MIX(xt, t)


def timesteps(**levels: float) -> dict[str, Tensor]:
    return {m: torch.full((5,), levels[m], dtype=torch.float64) for m in NAMES}


def with_levels(roles: Roles, t: float) -> dict[str, Tensor]:
    return timesteps(**{m: roles.held.get(m, t) for m in NAMES})


def answer(roles: Roles, guidance: Guidance, t: dict[str, Tensor], **options: Any) -> tuple[Joint, list[int]]:
    denoiser = Counting()
    return guided(denoiser, roles, guidance, lambda: NOISE, **options)(XT, t), denoiser.rows


def close(found: Joint, expected: Joint) -> None:
    for stream, x0 in expected.items():
        torch.testing.assert_close(found[stream], x0)


def marginal(streams: list[str], t: dict[str, Tensor]) -> Joint:
    """The exact estimate of streams that see nothing but themselves."""
    return MIX.marginal(streams)({s: XT[s] for s in streams}, t)


def push(full: Tensor, weak: Tensor, scale: float) -> Tensor:
    return (1 + scale) * full - scale * weak


def test_one_sampled_modality_is_classifier_free_guidance() -> None:
    """p(a | b), c ignored: (1 + s) D(a | b) - s D(a), for every stream of a, in one forward of twice the rows."""
    roles = assign_roles(NAMES, ["a"], ["b"])
    t = with_levels(roles, 0.4)
    found, rows = answer(roles, Guidance(scale=2.5), t)
    full, weak = MIX(XT, t), marginal(["a.x", "a.y"], t)
    close(found, {s: push(full[s], weak[s], 2.5) for s in ("a.x", "a.y")})
    assert rows == [10]


def test_the_joint_is_pushed_from_its_marginals() -> None:
    """p(a, b | c) with a scale each: a from p(a), b from p(b), in one forward of three times the rows."""
    roles = assign_roles(NAMES, ["a", "b"], ["c"])
    t = timesteps(a=0.4, b=0.7, c=0.0)
    found, rows = answer(roles, Guidance(scale={"a": 2.0, "b": 0.5}), t)
    full = MIX(XT, t)
    weak = marginal(["a.x", "a.y"], t) | marginal(["b"], t)
    close(found, {s: push(full[s], weak[s], 0.5 if s == "b" else 2.0) for s in weak})
    assert rows == [15]


def test_against_unconditional_only_the_given_is_ignored() -> None:
    roles = assign_roles(NAMES, ["a", "b"], ["c"], {"c": 0.2})
    t = timesteps(a=0.4, b=0.7, c=0.2)
    found, rows = answer(roles, Guidance(scale=3.0, against="unconditional"), t)
    full, weak = MIX(XT, t), marginal(["a.x", "a.y", "b"], t)
    close(found, {s: push(full[s], weak[s], 3.0) for s in weak})
    assert rows == [10]


def test_against_empty_the_given_is_the_empty_value() -> None:
    roles = assign_roles(NAMES, ["a"], ["b"])
    t = with_levels(roles, 0.4)
    found, rows = answer(roles, Guidance(scale=3.0, against="empty"), t, empty={"b": torch.full((1, 1), 0.3)})
    full, weak = MIX(XT, t), MIX(XT | {"b": torch.full((5, 1), 0.3)}, t)
    close(found, {s: push(full[s], weak[s], 3.0) for s in ("a.x", "a.y")})
    assert rows == [10]
    with pytest.raises(ValueError, match="needs the empty value of 'b'"):
        answer(roles, Guidance(scale=3.0, against="empty"), t)


@pytest.mark.parametrize("against", ["marginal", "unconditional"])
def test_what_is_not_needed_is_not_evaluated(against: Any) -> None:
    alone, both = assign_roles(NAMES, ["a"]), assign_roles(NAMES, ["a"], ["b"])
    nothing = [
        (alone, Guidance(scale=7.0, against=against), 0.4),  # nothing known: the scale has no meaning
        (both, Guidance(scale=0.0, against=against), 0.4),
        (both, Guidance(scale={"b": 3.0}, against=against), 0.4),  # only a scale of what is not sampled
        (both, Guidance(scale=7.0, against=against, interval=(0.5, 0.8)), 0.4),
        (both, Guidance(scale=7.0, against=against), 0.0),  # already clean
    ]
    for roles, guidance, level in nothing:
        t = with_levels(roles, level)
        found, rows = answer(roles, guidance, t)
        assert rows == [5]
        assert all(torch.equal(found[s], x0) for s, x0 in MIX(XT, t).items())
    assert answer(both, Guidance(scale=7.0, against=against, interval=(0.3, 0.4)), with_levels(both, 0.4))[1] == [10]


def test_a_joint_of_noise_has_nothing_to_be_guided_by() -> None:
    """Image first: while text is still noise, the image has no weak branch; when it is done, text has its own."""
    roles = assign_roles(NAMES, ["a", "b"])
    assert answer(roles, Guidance(scale=7.0), timesteps(a=0.4, b=1.0, c=1.0))[1] == [10]  # b against p(b) only
    assert answer(roles, Guidance(scale={"a": 7.0}), timesteps(a=0.4, b=1.0, c=1.0))[1] == [5]
    assert answer(roles, Guidance(scale=7.0), timesteps(a=0.0, b=0.5, c=1.0))[1] == [10]
    assert answer(roles, Guidance(scale=7.0), timesteps(a=0.5, b=0.5, c=1.0))[1] == [15]


def test_the_interval_holds_for_every_sample_by_itself() -> None:
    roles = assign_roles(NAMES, ["a"], ["b"])
    t = with_levels(roles, 0.4) | {"a": torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)}
    found, _ = answer(roles, Guidance(scale=2.0, interval=(0.3, 0.7)), t)
    full, weak = MIX(XT, t), marginal(["a.x", "a.y"], t)
    scale = torch.tensor([[0.0], [2.0], [2.0], [2.0], [0.0]], dtype=torch.float64)
    close(found, {s: full[s] + scale * (full[s] - weak[s]) for s in weak})


def test_it_is_the_papers_guidance_of_the_noise() -> None:
    """Guiding x0 at equal x_t and t is guiding eps: (1 + s) eps - s eps_weak."""
    roles, process = assign_roles(NAMES, ["a"], ["b"]), MIX.process
    t = with_levels(roles, 0.4)
    found, _ = answer(roles, Guidance(scale=7.0), t)
    full, weak = MIX(XT, t), marginal(["a.x", "a.y"], t)
    for s in weak:
        eps, eps_full, eps_weak = (process.eps_from_x0(x0[s], XT[s], t["a"]) for x0 in (found, full, weak))
        torch.testing.assert_close(eps, 8.0 * eps_full - 7.0 * eps_weak)


def test_inputs_are_left_alone() -> None:
    roles = assign_roles(NAMES, ["a", "b"], ["c"])
    before = cat_joints([XT])
    answer(roles, Guidance(scale=2.0), with_levels(roles, 0.4))
    assert all(torch.equal(XT[s], x) for s, x in before.items())


def test_both_conventions() -> None:
    assert Guidance.from_g(8.0) == Guidance(scale=7.0)
    assert Guidance.from_g({"a": 1.0, "b": 3.5}, interval=(0.1, 0.9)).scale == {"a": 0.0, "b": 2.5}


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Guidance(scale=-1.0), "between 0"),
        (lambda: Guidance(scale=math.nan), "between 0"),
        (lambda: Guidance(scale={"a": math.inf}), "between 0"),
        (lambda: Guidance(scale=1e5), "between 0"),
        (lambda: Guidance.from_g(0.5), "between 1"),
        (lambda: Guidance(interval=(0.6, 0.4)), "interval"),
        (lambda: Guidance(interval=(0.0, math.nan)), "interval"),
        (lambda: Guidance(against="nothing"), "marginal, unconditional, empty"),  # type: ignore[arg-type]
        (lambda: answer(assign_roles(NAMES, ["a"]), Guidance(scale={"d": 1.0}), timesteps(a=1, b=1, c=1)), "names 'd'"),
    ],
)
def test_bad_guidance_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()

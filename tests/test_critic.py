"""A critic that learns, against what it should learn: the student's exact clean estimate, and the exact log ratio."""

import pytest
import torch
from laws import law
from torch import Tensor

from unidiffuser.critic import Critic, accuracy, adversarial_loss, judging_loss
from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.instruct import METHODS
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.process import RectifiedFlow
from unidiffuser.teach import Rows, Teaching
from unidiffuser.timesteps import assign_roles

PROCESS = RectifiedFlow()
MEAN, VARIANCE = 0.9, 0.5
STUDENT = law(PROCESS, [1.0], [MEAN], [VARIANCE])
TEACHER = law(PROCESS, [0.3, 0.7], [-1.2, 0.7], [0.2, 0.3])
STEPS, BATCH = 1200, 512


@pytest.fixture(scope="module")
def critic() -> Critic:
    """A critic that was taught with a student that stands still."""
    torch.manual_seed(0)
    critic = Critic(MLP(MLPConfig(streams={"a": (1,)}, dim=32, depth=2)))
    method = METHODS["f-distill"]
    teaching = Teaching(method=method, teacher=TEACHER, process=PROCESS, prediction="x0", judging=1.0)
    rows = Rows([assign_roles(["a"], ["a"])], BATCH, {"a": (1,)})
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3, betas=(0.9, 0.99))
    g = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        made, real = ({"a": mix.sample(BATCH, g)["a"].float()} for mix in (STUDENT, TEACHER))
        loss, _ = teaching.critic_loss(critic, rows, made, real, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return critic


def points(t: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Points of both laws at a timestep."""
    g = torch.Generator().manual_seed(2)
    x0 = torch.cat([mix.sample(2000, g)["a"] for mix in (STUDENT, TEACHER)])
    level = torch.full((len(x0),), t, dtype=torch.float64)
    return {"a": PROCESS.add_noise(x0, torch.randn(x0.shape, generator=g).double(), level)}, {"a": level}


@torch.no_grad()
@pytest.mark.parametrize("t", [0.2, 0.4, 0.6, 0.8])
def test_its_estimate_is_the_optimal_one_of_the_students_law(critic: Critic, t: float) -> None:
    """For a Gaussian student: mu + alpha A / (alpha^2 A + sigma^2) (x_t - alpha mu)."""
    xt, levels = points(t)
    network = NetworkDenoiser(critic.network, PROCESS, "x0")
    found = network({"a": xt["a"].float()}, {"a": levels["a"].float()})["a"].double()
    alpha, sigma = 1 - t, t
    exact = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (xt["a"] - alpha * MEAN)
    assert (found - exact).square().mean() < 0.01 * VARIANCE


@torch.no_grad()
@pytest.mark.parametrize("t", [0.2, 0.4, 0.6, 0.8])
def test_its_logit_is_the_log_ratio_at_every_level(critic: Critic, t: float) -> None:
    xt, levels = points(t)
    _, logit = critic({"a": xt["a"].float()}, {"a": levels["a"].float()})
    exact = TEACHER.log_prob(xt, levels) - STUDENT.log_prob(xt, levels)
    inside = exact.abs() < 3  # beyond, the two laws' samples are too few to say
    error, size = (logit.double() - exact)[inside], exact[inside].square().mean().sqrt()
    assert inside.float().mean() > 0.8
    assert error.square().mean().sqrt() < min(0.2, 0.5 * size)
    assert abs(error.mean()) < 0.07  # calibrated: neither law is favoured at this level


def test_the_losses_of_judging() -> None:
    zero = torch.zeros(4)
    assert judging_loss(zero, zero).item() == pytest.approx(torch.tensor(2.0).log().item())
    real, made = torch.tensor([3.0, 1.0, -1.0]), torch.tensor([-2.0, 2.0, -1.0])
    expected = -0.5 * (torch.sigmoid(real).log().mean() + torch.sigmoid(-made).log().mean())
    torch.testing.assert_close(judging_loss(real, made), expected)
    torch.testing.assert_close(adversarial_loss(made), torch.log(1 + torch.exp(-made)))
    assert accuracy(real, made).item() == pytest.approx(2 / 3)

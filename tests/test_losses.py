"""The objective against closed forms."""

import pytest
import torch
from torch import Tensor, nn

from unidiffuser.losses import Objective, denoising_loss, noised_loss
from unidiffuser.process import PROCESSES, Cosine, Prediction, RectifiedFlow


class Affine(nn.Module):
    """A network whose output is the target of a known guess of the data, for any prediction."""

    def __init__(self, objective: Objective, guess: float) -> None:
        super().__init__()
        self.objective, self.guess = objective, nn.Parameter(torch.tensor(guess))

    def forward(self, xt: dict[str, Tensor], t: dict[str, Tensor], label: Tensor | None = None) -> dict[str, Tensor]:
        process, out = self.objective.process, {}
        for stream, x in xt.items():
            x0 = self.guess.expand_as(x)
            eps = process.eps_from_x0(x0, x, t[stream])
            out[stream] = process.target(self.objective.prediction, x0, eps, t[stream])
        return out


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("space", ["eps", "v", "x0"])
def test_the_error_is_measured_in_its_space_whatever_is_predicted(
    name: str, prediction: Prediction, space: Prediction
) -> None:
    process = PROCESSES[name]()
    objective = Objective(process=process, prediction=prediction, space=space, max_scale=1e6)
    g = torch.Generator().manual_seed(0)
    x0, eps = {"a": torch.randn(64, 3, generator=g)}, {"a": torch.randn(64, 3, generator=g)}
    t = {"a": torch.linspace(0.05, 0.95, 64)}
    loss, _ = noised_loss(objective, Affine(objective, 0.4), x0, eps, t)
    # By hand: the guess 0.4 for x0, both turned into targets of `space`.
    xt = process.add_noise(x0["a"], eps["a"], t["a"])
    guess = torch.full_like(xt, 0.4)
    said = process.target(space, guess, process.eps_from_x0(guess, xt, t["a"]), t["a"])
    wanted = process.target(space, x0["a"], eps["a"], t["a"])
    torch.testing.assert_close(loss, (said - wanted).square().mean(), rtol=2e-3, atol=1e-4)


def test_a_given_stream_does_not_count_and_streams_count_alike() -> None:
    objective = Objective(process=RectifiedFlow(), prediction="x0", space="x0", weights={"b": 3.0})
    x0 = {"a": torch.ones(4, 2), "b": torch.ones(4, 50)}
    t = {"a": torch.tensor([0.0, 0.0, 0.5, 0.5]), "b": torch.full((4,), 0.5)}
    network = Affine(objective, 0.0)
    loss, parts = noised_loss(objective, network, x0, {s: torch.zeros_like(x) for s, x in x0.items()}, t)
    assert parts["a"] == 1 and parts["b"] == 1  # the mean over those that are not given, whatever their size
    torch.testing.assert_close(loss, torch.tensor(4.0))
    given, _ = noised_loss(objective, network, x0, x0, {m: torch.zeros(4) for m in t})
    assert given == 0


def test_the_weight_is_bounded_towards_the_data() -> None:
    objective = Objective(process=RectifiedFlow(), prediction="x0", space="v", max_scale=4.0)
    x0, t = {"a": torch.ones(1, 1)}, {"a": torch.tensor([0.01])}
    loss, _ = noised_loss(objective, Affine(objective, 0.0), x0, {"a": torch.zeros(1, 1)}, t)
    torch.testing.assert_close(loss, torch.tensor(16.0))


def test_the_best_constant_has_the_loss_of_theory_and_a_draw_repeats() -> None:
    """Predicting x0 = 0 for standard normal data costs 1, and the gradient with respect to the guess vanishes."""
    objective = Objective(process=Cosine(), prediction="x0", space="x0", ends=0.1)
    network = Affine(objective, 0.0)
    x0 = {"a": torch.randn(20_000, 2, generator=torch.Generator().manual_seed(3))}
    loss, _ = denoising_loss(objective, network, x0, torch.Generator().manual_seed(4))
    again, _ = denoising_loss(objective, network, x0, torch.Generator().manual_seed(4))
    assert torch.equal(loss, again)
    assert abs(loss.item() - 1) < 0.02
    loss.backward()
    assert abs(network.guess.grad.item()) < 0.03

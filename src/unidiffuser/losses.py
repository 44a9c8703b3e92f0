"""The training objective: every modality noised at a timestep of its own, one network predicting all of them.

    L = sum over streams s of  w_s  mean || prediction_s - target_s ||^2                    (UniDiffuser, eq. 7)

with the error measured in the space of eps, v or x0 whatever the network puts out (for a network that puts out x0,
the v-error is the x0-error times (a alpha / sigma + b)^2). A stream at t = 0 exactly is given: there is nothing to
predict, and it does not count.

This file knows nothing of optimisers, data or codecs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unidiffuser.joint import Joint, map_joint, modalities_of, modality_of
from unidiffuser.process import Prediction, Process
from unidiffuser.timesteps import draw_timesteps


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises."""

    process: Process
    """The noising process."""
    prediction: Prediction = "eps"
    """What the network puts out."""
    space: Prediction = "eps"
    """Where the error is measured."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Stream -> weight; 1 where absent: the mean squared error of every stream counts alike, whatever its size."""
    ends: float = 0.1
    """The probability with which a modality's timestep is exactly 0, and exactly 1 (see `timesteps.draw_timesteps`)."""
    max_scale: float = 4.0
    """Upper bound of the factor from the prediction's error to the error in `space`, infinite towards t = 0."""


def denoising_loss(
    objective: Objective, network: nn.Module, x0: Joint, generator: torch.Generator, label: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """One draw of the objective.

    Args:
        x0: clean joint, stream -> (B, ...).
        generator: CPU generator; the only source of randomness (timesteps first, then noise, in the order of the
        streams).

    Returns:
        The loss, a scalar, and the mean error of every stream, detached.
    """
    batch = next(iter(x0.values())).shape[0]
    t = draw_timesteps(modalities_of(x0), batch, generator, ends=objective.ends)
    eps = {s: torch.randn(x.shape, generator=generator).to(x) for s, x in x0.items()}
    t = {m: value.to(next(iter(x0.values())).device) for m, value in t.items()}
    return noised_loss(objective, network, x0, eps, t, label)


def noised_loss(
    objective: Objective,
    network: nn.Module,
    x0: Joint,
    eps: Joint,
    t: Mapping[str, Tensor],
    label: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective for noise eps and timesteps t that are already drawn; see `denoising_loss`."""
    process = objective.process
    xt = {s: process.add_noise(x, eps[s], t[modality_of(s)]) for s, x in x0.items()}
    output = network(xt, t, label)
    errors = {}
    for stream, clean in x0.items():
        t_s = t[modality_of(stream)]
        target = process.target(objective.prediction, clean, eps[stream], t_s)
        squared = (output[stream].float() - target).square().flatten(1).mean(1)  # (B,)
        errors[stream] = (squared * _weight(objective, t_s)).sum() / (t_s > 0).sum().clamp(min=1)
    loss = torch.stack([objective.weights.get(s, 1.0) * error for s, error in errors.items()]).sum()
    return loss, map_joint(torch.Tensor.detach, errors)


def _weight(objective: Objective, t: Tensor) -> Tensor:
    """(B,): the squared factor from the prediction's error to the error in `space`; 0 at t = 0."""
    scale = objective.process.x0_error_scale
    factor = scale(objective.space, t) / scale(objective.prediction, t)
    if objective.space == objective.prediction:
        factor = torch.ones_like(factor)
    return torch.where(t > 0, factor.clamp(max=objective.max_scale).square(), 0.0).float()

"""The training objective: every modality noised at a timestep of its own, one network predicting all of them.

    L = sum over streams s of  w_s  mean || prediction_s - target_s ||^2                    (UniDiffuser, eq. 7)

with the error measured in the space of eps, v or x0 whatever the network puts out (for a network that puts out x0,
the v-error is the x0-error times (a alpha / sigma + b)^2). A stream at t = 0 exactly is given: there is nothing to
predict, and it does not count.

This file knows nothing of optimisers, data or codecs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unidiffuser.joint import Joint, Shapes, generator, map_joint, modalities_of, modality_of
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


def draw(shapes: Shapes, seed: int, step: int, places: Sequence[int], ends: float) -> tuple[Joint, dict[str, Tensor]]:
    """The noise and the timesteps of some samples of a step, each a function of (seed, step, its place) alone.

    So neither the size of a part nor the number of processes changes what a sample is trained on.

    Args:
        shapes: stream -> shape of one sample.
        places: of the B samples in the step's batch.
        ends: see `timesteps.draw_timesteps`.

    Returns:
        eps, stream -> (B, ...); t, modality -> (B,).
    """
    t: dict[str, list[Tensor]] = {m: [] for m in modalities_of(shapes)}
    eps: dict[str, list[Tensor]] = {s: [] for s in shapes}
    for place in places:
        g = generator(seed, "noise", step, place)
        for m, one in draw_timesteps(t, 1, g, ends=ends).items():
            t[m].append(one)
        for s, shape in shapes.items():
            eps[s].append(torch.randn(shape, generator=g))
    return {s: torch.stack(x) for s, x in eps.items()}, {m: torch.cat(x) for m, x in t.items()}


def noised_loss(
    objective: Objective,
    network: Callable[..., Joint],
    x0: Joint,
    eps: Joint,
    t: Mapping[str, Tensor],
    label: Tensor | None = None,
    *,
    present: Mapping[str, Tensor] | None = None,
    expected: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective for noise eps and timesteps t that are already drawn; see `denoising_loss`.

    Args:
        present: modality -> (B,) bool: where it is False the sample lacks the modality, which is then noise at t = 1
            and does not count.
        expected: divide the sum of a stream's errors not by the number of samples that count but by the expected
            number, B (1 - ends): then the mean over the parts of a batch is the loss of the batch.
    """
    if present is not None:
        t = {m: torch.where(present[m], value, 1.0) for m, value in t.items()}
    process = objective.process
    xt = {s: process.add_noise(x, eps[s], t[modality_of(s)]) for s, x in x0.items()}
    output = network(xt, t, label)
    errors = {}
    for stream, clean in x0.items():
        t_s = t[modality_of(stream)]
        target = process.target(objective.prediction, clean, eps[stream], t_s)
        squared = (output[stream].float() - target).square().flatten(1).mean(1)  # (B,)
        counts = (t_s > 0) if present is None else (t_s > 0) & present[modality_of(stream)]
        number = counts.sum().clamp(min=1) if not expected else len(t_s) * (1 - objective.ends)
        errors[stream] = torch.where(counts, squared * _weight(objective, t_s), 0.0).sum() / number
    loss = torch.stack([objective.weights.get(s, 1.0) * error for s, error in errors.items()]).sum()
    return loss, map_joint(torch.Tensor.detach, errors)


def _weight(objective: Objective, t: Tensor) -> Tensor:
    """(B,): the squared factor from the prediction's error to the error in `space`; 0 at t = 0."""
    scale = objective.process.x0_error_scale
    factor = scale(objective.space, t) / scale(objective.prediction, t)
    if objective.space == objective.prediction:
        factor = torch.ones_like(factor)
    return torch.where(t > 0, factor.clamp(max=objective.max_scale).square(), 0.0).float()

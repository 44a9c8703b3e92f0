"""All that a run needs to go on: weights, their averages, and the optimiser's moments, under flat names.

    model.NAME          the weights that train (all buffers too, unless some weights are frozen)
    average.NAME        the average that becomes the model;  average@DECAY.NAME  every further one
    optimiser.I.KEY     the moments of parameter I

Nothing random is in it: data, timesteps and noise are functions of the seed and the step.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unidiffuser.training.preset import OptimiserSettings
from unidiffuser.training.team import local


class Averages:
    """Exponential averages of the weights that train, of several lengths, each shorter while the run is young."""

    def __init__(self, model: nn.Module, decays: tuple[float, ...]) -> None:
        self.trained = dict(trained(model))
        self.decays = decays
        self.weights = [{name: p.detach().clone() for name, p in self.trained.items()} for _ in decays]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move every average towards the weights: a <- d a + (1 - d) w, d = min(decay, 1 - 1 / (step + 2))."""
        now = [local(p.detach()) for p in self.trained.values()]
        for decay, average in zip(self.decays, self.weights, strict=True):
            torch._foreach_lerp_([local(x) for x in average.values()], now, 1 - min(decay, 1 - 1 / (step + 2)))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The averages under their names in the state."""
        for k, (decay, average) in enumerate(zip(self.decays, self.weights, strict=True)):
            for name, x in average.items():
                yield f"average{f'@{decay}' if k else ''}.{name}", x


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are not frozen."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def optimiser_of(model: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW over the weights that train; only matrices and kernels decay. A group's "share" is its part of the rate."""
    shares: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, p in trained(model):
        share = next((factor for start, factor in settings.rates.items() if name.startswith(start)), 1.0)
        shares.setdefault(share, []).append(p)
    groups = [
        {"params": [p for p in weights if (p.ndim > 1) == matrices], "weight_decay": decay, "share": share}
        for share, weights in shares.items()
        for matrices, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def state_of(model: nn.Module, averages: Averages, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state, sharing memory with what it is of."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    state = {f"model.{name}": x for name, x in model.state_dict().items() if name not in frozen}
    state |= dict(averages.named())
    for index, values in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{name}": torch.as_tensor(x) for name, x in values.items()}
    return state


def begin_moments(optimiser: torch.optim.Optimizer) -> None:
    """Give AdamW the moments that its first step would give it, so that a state can be read into them."""
    for group in optimiser.param_groups:
        for p in group["params"]:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            optimiser.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=local(p).device), **moments}


def unsharded(state: Mapping[str, Tensor]) -> bool:
    """Whether no tensor of a state is in pieces."""
    return not any(isinstance(x, DTensor) for x in state.values())

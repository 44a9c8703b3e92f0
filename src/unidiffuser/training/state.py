"""All that a run needs to go on: weights, their averages, and the optimiser's moments, under flat names.

    model.NAME          the weights that train (all buffers too, unless some weights are frozen)
    average.NAME        the average that becomes the model;  average@DECAY.NAME  every further one
    optimiser.I.KEY     AdamW's moments of its parameter I;  muon.I.KEY  Muon's

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


class Optimisers:
    """AdamW over the weights that train, of which only matrices and kernels decay; or Muon for the matrices in blocks.

    Muon (Jordan et al. 2024) turns the momentum of a matrix into the nearest one with equal singular values, scaled
    here so that its steps are about as large as AdamW's (arXiv 2502.16982). It is torch's own. A group's "peak" is its
    learning rate at most, for the weights whose name begins with a key of `settings.rates` that many times the others'.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings) -> None:
        weights = dict(trained(model))
        hidden = {n: p for n, p in weights.items() if settings.muon and p.ndim == 2 and "block" in n}
        rest = {n: p for n, p in weights.items() if n not in hidden}
        groups = [
            {"params": [p for p in part if (p.ndim > 1) == matrices], "weight_decay": decay, "peak": peak}
            for peak, part in _by_peak(rest, settings.lr, settings).items()
            for matrices, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
        ]
        if hidden:
            groups = [{"params": p, "peak": peak} for peak, p in _by_peak(hidden, settings.muon, settings).items()]
            muon = torch.optim.Muon(
                groups, lr=settings.muon, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimisers.append(muon)

    def step(self, share: float) -> None:
        """One step at a share of the peak learning rates."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            optimiser.step()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The moments under their names in the state."""
        for k, optimiser in enumerate(self.optimisers):
            for index, values in optimiser.state_dict()["state"].items():
                for name, x in values.items():
                    yield f"{'muon' if k else 'optimiser'}.{index}.{name}", torch.as_tensor(x)

    def begin(self) -> None:
        """Make the moments that the first step would make, so that a state can be read into them."""
        for k, optimiser in enumerate(self.optimisers):
            for group in optimiser.param_groups:
                for p in group["params"]:
                    optimiser.state[p] = _muon_moments(p) if k else _adam_moments(p)


def _by_peak(
    weights: Mapping[str, nn.Parameter], peak: float, settings: OptimiserSettings
) -> dict[float, list[nn.Parameter]]:
    """Weights by their peak learning rate."""
    groups: dict[float, list[nn.Parameter]] = {peak: []}
    for name, p in weights.items():
        share = next((share for start, share in settings.rates.items() if name.startswith(start)), 1.0)
        groups.setdefault(peak * share, []).append(p)
    return groups


def _adam_moments(p: Tensor) -> dict[str, Tensor]:
    moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return {"step": torch.zeros((), dtype=torch.float32, device=local(p).device), **moments}


def _muon_moments(p: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(p)}


def state_of(model: nn.Module, averages: Averages, optimisers: Optimisers) -> dict[str, Tensor]:
    """The state, sharing memory with what it is of."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    state = {f"model.{name}": x for name, x in model.state_dict().items() if name not in frozen}
    state |= dict(averages.named())
    return state | dict(optimisers.named())


def unsharded(state: Mapping[str, Tensor]) -> bool:
    """Whether no tensor of a state is in pieces."""
    return not any(isinstance(x, DTensor) for x in state.values())

"""LoRA: low-rank additions to the linear layers of a trained network (Hu et al. 2021, arXiv 2106.09685).

    y = W x + b + scale B A x,   A (r, in) random, B (out, r) zero at the start: at first the network is unchanged

`adapt` puts them in and freezes all else; `merge` adds them to a plain network's weights. It knows no file.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Additions:
    """Low-rank additions by the dotted name of their layer."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Name -> (A (r, in), B (out, r))."""
    scale: float
    """How much they count."""

    def sums(self) -> list[tuple[str, str]]:
        """(layer, sha256 of its numbers): what tells these additions from others."""
        return [
            (name, hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in pair)).hexdigest())
            for name, pair in sorted(self.layers.items())
        ]


class Adapted(nn.Linear):
    """A frozen linear layer with a low-rank addition; its weight keeps its name."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


def adapt(network: nn.Module, rank: int, alpha: float, layers: Iterable[str]) -> list[str]:
    """Give linear layers additions and freeze everything else.

    Args:
        rank: r. alpha: the scale is alpha / rank; 0: it is 1.
        layers: a layer is adapted if one of these words is in its dotted name.

    Returns:
        The names of the adapted layers.

    Raises:
        ValueError: the rank is not positive, or no layer has such a name.
    """
    if rank < 1:
        raise ValueError(f"the rank of an adapter must be 1 or more, not {rank}")
    network.requires_grad_(False)
    linear = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    words = tuple(layers)
    chosen = [name for name in linear if any(word in name for word in words)]
    if not chosen:
        raise ValueError(f"no linear layer has {' or '.join(words)} in its name; there are {', '.join(linear)}")
    for name in chosen:
        place, _, last = name.rpartition(".")
        setattr(network.get_submodule(place), last, Adapted(linear[name], rank, alpha / rank if alpha else 1.0))
    return chosen


def additions(weights: Mapping[str, Tensor], scale: float) -> Additions:
    """The additions among the weights of an adapted network."""
    names = sorted(name.removesuffix(".down") for name in weights if name.endswith(".down"))
    layers = {name: (weights[f"{name}.down"].cpu(), weights[f"{name}.up"].cpu()) for name in names}
    return Additions(layers, scale)


@torch.no_grad()
def merge(network: nn.Module, what: Additions, strength: float = 1.0) -> None:
    """Add additions to a network's weights: W <- W + strength scale B A.

    Raises:
        ValueError: the network has no such layer, or of another shape; then nothing is changed.
    """
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, (down, up) in what.layers.items():
        if name not in linear:
            raise ValueError(f"the adapter changes a layer {name!r}, which this model does not have")
        shape = tuple(linear[name].weight.shape)
        if (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"the adapter's layer {name!r} is {up.shape[0]} x {down.shape[1]}, but the model's is "
                f"{shape[0]} x {shape[1]}: it was made for another model"
            )
    for name, (down, up) in what.layers.items():
        weight = linear[name].weight
        weight += (strength * what.scale * (up @ down)).to(weight)

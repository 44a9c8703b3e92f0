"""A residual MLP over all streams at once: enough for vectors and for toy problems with exact answers.

Every stream is flattened and joined with sinusoids of every timestep; pre-normalised residual layers follow; the
output is split back into streams. It knows nothing of grids, sequences or files.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unidiffuser.joint import Joint, modalities_of
from unidiffuser.networks import Network, steadily
from unidiffuser.networks.uvit import sinusoid


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The shape of a residual MLP."""

    streams: Mapping[str, tuple[int, ...]]
    """Stream -> shape of one sample, any number of axes."""
    dim: int = 128
    """Width of every layer, an even number."""
    depth: int = 3
    """Residual layers."""

    def __post_init__(self) -> None:
        if not self.streams or self.dim < 2 or self.dim % 2 or self.depth < 1:
            raise ValueError(
                f"an MLP needs streams, an even width and a layer, not width {self.dim}, depth {self.depth}"
            )


class MLP(Network):
    """A small network for vectors."""

    kind = "mlp"
    Config = MLPConfig
    config: MLPConfig

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = modalities_of(config.streams)
        self.sizes = [math.prod(shape) for shape in config.streams.values()]
        d = config.dim
        self.embed = nn.Linear(sum(self.sizes) + d * len(self.modalities), d)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
            for _ in range(config.depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, sum(self.sizes)))

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(
        self,
        xt: Joint,
        t: Mapping[str, Tensor],
        label: Tensor | None = None,
        wanted: Collection[str] | None = None,
    ) -> Joint:
        return self.read_out(self.features(xt, t, label), xt, wanted)

    def features(self, xt: Joint, t: Mapping[str, Tensor], label: Tensor | None = None) -> Tensor:
        """The output of the last layer, (B, 1, D)."""
        values = [xt[stream].flatten(1) for stream in self.config.streams]
        times = [sinusoid(t[m] * 1000.0, self.config.dim).to(values[0]) for m in self.modalities]
        return steadily(self._layers, torch.cat(values + times, 1).to(self.embed.weight.dtype))[:, None]

    def read_out(self, features: Tensor, xt: Joint, wanted: Collection[str] | None = None) -> Joint:
        parts = dict(zip(self.config.streams, steadily(self.head, features[:, 0]).split(self.sizes, 1), strict=True))
        return {s: part.reshape(xt[s].shape) for s, part in parts.items() if wanted is None or s in wanted}

    def _layers(self, rows: Tensor) -> Tensor:
        """All streams and timesteps as one row a sample -> (B, D)."""
        x: Tensor = self.embed(rows)
        for layer in self.layers:
            x = x + layer(x)
        return x

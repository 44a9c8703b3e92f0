"""Reuse of inner blocks: a U-ViT whose inner blocks are computed at some evaluations only.

The long skips of a U-ViT carry what is fresh past the inner blocks, whose output changes slowly from step to step. So
the `outer` outermost pairs of blocks are computed at every evaluation, and what lies inside only at every `every`-th;
in between, its last output is taken (the idea of DeepCache, arXiv 2312.00858, on a transformer). How large the error is
depends on the network and the solver's steps; `benchmarks/released.py --model` measures it.

This file knows a U-ViT's blocks. It knows no solver: an evaluation is a call.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.joint import Joint
from unidiffuser.networks import Network
from unidiffuser.networks.uvit import UViT


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """How often what is computed anew."""

    every: int = 2
    """The inner blocks are computed at the first of every so many evaluations."""
    outer: int = 1
    """Pairs of outer blocks that are always computed."""

    def __post_init__(self) -> None:
        if not 2 <= self.every <= 100 or self.outer < 1:
            raise ValueError(
                f"reuse of inner blocks takes every 2 to 100 evaluations and 1 outer pair or more, "
                f"not every {self.every} and {self.outer} pairs"
            )


class ReusingDenoiser(NetworkDenoiser):
    """A `NetworkDenoiser` for one run of a solver, which remembers what its inner blocks put out last."""

    def __init__(self, reuse: Reuse, network: Network, *rest: Any, **options: Any) -> None:
        """reuse: when. The rest is as for `NetworkDenoiser`."""
        if not isinstance(network, UViT) or reuse.outer > network.config.depth // 2:
            raise ValueError(
                f"this network cannot reuse its inner blocks beyond {reuse.outer} outer pairs; "
                "that needs a U-ViT with as many"
            )
        super().__init__(network, *rest, **options)
        self.reuse, self.uvit, self.calls = reuse, network, 0
        self.inner: Tensor | None = None

    def predict(self, xt: Joint, t: dict[str, Tensor], label: Tensor | None) -> Joint:
        network = self.uvit
        shapes = network.shapes(xt)
        x = network.tokens(xt, t, label)
        # Guidance may end or begin on the way, and with it branches of the batch: then there is nothing to reuse.
        fresh = self.calls % self.reuse.every == 0 or self.inner is None or self.inner.shape != x.shape
        self.calls = 1 if fresh else self.calls + 1
        sight = network.sight(t, shapes, x)
        x, self.inner = network.through(x, sight, self.reuse.outer, None if fresh else self.inner)
        return network.streams(x, shapes, self.wanted)

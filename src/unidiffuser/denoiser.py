"""The seam of the library: a Denoiser takes a noisy joint and one timestep a modality, and gives the clean joint.

    D(x_t, t) = E[x0 | x_t],   the timesteps of the modalities being independent of one another.

A guided denoiser, an averaged denoiser, a distilled denoiser, a closed-form denoiser and a foreign checkpoint are all
Denoisers. Solvers, previews and distillation know nothing else. This file knows nothing of roles or raw data.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from unidiffuser.joint import Joint, modality_of
from unidiffuser.process import Prediction, Process


class Denoiser(Protocol):
    """(noisy joint, timesteps) -> clean joint."""

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        """The clean estimate of every stream.

        Args:
            xt: stream -> (B, ...).
            t: modality -> (B,), each in [0, 1].
        """


class NetworkDenoiser:
    """A network and a process, together a Denoiser."""

    def __init__(
        self, network: nn.Module, process: Process, prediction: Prediction, label: Tensor | None = None
    ) -> None:
        """
        Args:
            network: (x_t, t, label) -> joint of raw outputs.
            process: the noising process it was trained with.
            prediction: what its outputs stand for.
            label: (B,) the global label of each sample, for networks that have a label token.
        """
        self.network, self.process, self.prediction, self.label = network, process, prediction, label

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        return clean_estimate(self.process, self.prediction, self.network(xt, t, self._label_for(xt)), xt, t)

    def _label_for(self, xt: Joint) -> Tensor | None:
        """The labels, repeated when guidance stacks several branches of the batch into one forward."""
        if self.label is None:
            return None
        return self.label.repeat(next(iter(xt.values())).shape[0] // self.label.shape[0])


def clean_estimate(
    process: Process, prediction: Prediction, output: Joint, xt: Joint, t: Mapping[str, Tensor]
) -> Joint:
    """What a network's outputs stand for: the clean estimate of every stream of xt."""
    return {s: process.x0_from(prediction, output[s], x, t[modality_of(s)]) for s, x in xt.items()}

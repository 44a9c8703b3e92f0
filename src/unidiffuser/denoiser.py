"""The seam of the library: a Denoiser takes a noisy joint and one timestep a modality, and gives the clean joint.

    D(x_t, t) = E[x0 | x_t],   the timesteps of the modalities being independent of one another.

A guided denoiser, an averaged denoiser, a distilled denoiser, a closed-form denoiser and a foreign checkpoint are all
Denoisers. Solvers, previews and distillation know nothing else. This file knows nothing of roles or raw data.
"""

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
        label = self._label_for(xt)
        output = self.network(xt, t, label)
        return {
            stream: self.process.x0_from(self.prediction, output[stream], x, t[modality_of(stream)])
            for stream, x in xt.items()
        }

    def _label_for(self, xt: Joint) -> Tensor | None:
        """The labels, repeated when guidance stacks several branches of the batch into one forward."""
        if self.label is None:
            return None
        return self.label.repeat(next(iter(xt.values())).shape[0] // self.label.shape[0])

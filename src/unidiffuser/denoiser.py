"""The seam of the library: a Denoiser takes a noisy joint and one timestep a modality, and gives the clean joint.

    D(x_t, t) = E[x0 | x_t],   the timesteps of the modalities being independent of one another.

A guided denoiser, an averaged denoiser, a distilled denoiser, a closed-form denoiser and a foreign checkpoint are all
Denoisers. Solvers, previews and distillation know nothing else. This file knows nothing of roles or raw data.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
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
        self,
        network: nn.Module,
        process: Process,
        prediction: Prediction,
        label: int | None = None,
        wanted: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            network: (x_t, t, label, wanted) -> joint of raw outputs.
            process: the noising process it was trained with.
            prediction: what its outputs stand for.
            label: the global label of all samples, for networks that have a label token.
            wanted: the streams that anybody asks for; all if absent. The network skips the heads of the others.
        """
        self.network, self.process, self.prediction = network, process, prediction
        self.label, self.wanted = label, wanted

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        return clean_estimate(self.process, self.prediction, self.predict(xt, t, self.label_for(xt)), xt, t)

    def predict(self, xt: Joint, t: dict[str, Tensor], label: Tensor | None) -> Joint:
        """The network's raw output for the wanted streams."""
        output: Joint = self.network(xt, t, label, self.wanted)
        return output

    def label_for(self, xt: Joint) -> Tensor | None:
        """The label of every row, (B,)."""
        x = next(iter(xt.values()))
        return None if self.label is None else torch.full((len(x),), self.label, dtype=torch.long, device=x.device)


def clean_estimate(
    process: Process, prediction: Prediction, output: Joint, xt: Joint, t: Mapping[str, Tensor]
) -> Joint:
    """What a network's outputs stand for: the clean estimates of their streams."""
    return {s: process.x0_from(prediction, out.to(xt[s]), xt[s], t[modality_of(s)]) for s, out in output.items()}

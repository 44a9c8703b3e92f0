"""The control of `diffusion`: the same latents, network and loss, but every timestep is 0 or 1.

A modality is then either there or masked, and nothing is ever half noisy: a masked model with a softmax over items. If
it ranks as well as the diffusion, the diffusion bought nothing.
"""

from dataclasses import dataclass

from unidiffuser.recommend.models.joint import JointConfig, JointModel


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(JointConfig):
    """The settings of the control: `ends` is 0.5."""

    ends: float = 0.5


class Masked(JointModel):
    """Masked modalities."""

    kind = "masked"
    Config = MaskedConfig

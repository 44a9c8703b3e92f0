"""The joint diffusion over user, query and item latents."""

from unidiffuser.recommend.models.joint import JointConfig, JointModel


class Diffusion(JointModel):
    """Every modality with a timestep of its own."""

    kind = "diffusion"
    Config = JointConfig

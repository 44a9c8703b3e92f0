"""Checkpoints: a model as files, one file of this folder a format.

`Parts` is what every format reads and writes: a network, the codecs of its modalities, and how to sample it. A format
knows files and hashes; it does not know how a sample is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unidiffuser.guidance import Guidance
from unidiffuser.modalities import Modality
from unidiffuser.networks import Network
from unidiffuser.offload import Offloaded, Weights
from unidiffuser.process import Prediction
from unidiffuser.reuse import Reuse


class ModelError(ValueError):
    """A model that is missing, damaged, foreign or from another version; the message is one sentence with the cure."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is sampled unless the user says otherwise."""

    steps: int = 25
    """Solver steps."""
    solver: str = "dpmpp_2m"
    """A row of `solvers.SOLVERS`."""
    grid: str = "uniform"
    """A row of `sampling.GRIDS`."""
    begin: float = 1.0
    """The timestep at which sampling starts."""
    end: float = 0.0
    """The timestep at which sampling stops."""
    guidance: Guidance = field(default_factory=Guidance)
    """How strongly the sampled modalities are pushed towards the given ones."""
    label: int = 0
    """The global label of all samples, for networks that have one (the data type of the released v1)."""
    fresh_noise: bool = False
    """Whether the noise of ignored modalities is drawn anew at each evaluation, as the released sampler does."""
    reuse: Reuse | None = None
    """Whether the output of inner blocks is taken from earlier evaluations: faster, and not exact."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that a model is."""

    name: str
    """What the model is called."""
    network: Network
    """The network; asleep (see `offload`) if its weights are still in a file."""
    process: str
    """The noising process, a row of `process.PROCESSES`."""
    prediction: Prediction
    """What the network's outputs stand for."""
    modalities: Mapping[str, Modality[Any]]
    """Name -> codec, in the order in which they are shown."""
    critic: Network | None = None
    """Of a student, whose network answers with samples: a network like it that answers with means."""
    settings: Settings = field(default_factory=Settings)
    """How it is sampled unless the user says otherwise."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, for the reader; JSON-able."""
    card: str = ""
    """The model card, Markdown."""
    weights: Weights | None = None
    """Where the weights of a network that is asleep come from."""
    critic_weights: Weights | None = None
    """The same of the critic."""
    digest: str = ""
    """sha256 that names the model in recipes; empty for a model that is no file yet."""

    def awake(self) -> "Parts":
        """The same with the weights of its networks in memory: what training begins from."""
        network = Offloaded(self.network, self.weights).wake()
        critic = None if self.critic is None else Offloaded(self.critic, self.critic_weights).wake()
        return replace(self, network=network, weights=None, critic=critic, critic_weights=None)

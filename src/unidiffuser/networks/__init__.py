"""Networks: (noisy joint, timesteps, label) -> one raw output a stream.

One file a network. The folder is the registry: a network's kind is the name of its file, and only files that lie here
can be named by a checkpoint. A network sees shapes and timesteps, never files or tokenizers.
"""

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.joint import Joint

STEADY_ROWS = 16


class Network(nn.Module, ABC):
    """The base of all networks that predict a joint."""

    kind: ClassVar[str]
    """The name of the network's file."""
    Config: ClassVar[type]
    """The frozen dataclass that describes the network."""
    config: Any

    @abstractmethod
    def forward(
        self,
        xt: Joint,
        t: Mapping[str, Tensor],
        label: Tensor | None = None,
        wanted: Collection[str] | None = None,
    ) -> Joint:
        """The raw prediction for every stream.

        Args:
            xt: stream -> (B, ...), noisy.
            t: modality -> (B,), in [0, 1].
            label: (B,) integer global labels, for networks that have them.
            wanted: the streams whose prediction is needed; all if absent. The others need not be computed.
        """

    def features(self, xt: Joint, t: Mapping[str, Tensor], label: Tensor | None = None) -> Tensor:
        """What the outputs are read from, (B, N, D): `forward` is `read_out` of it. A critic judges by it.

        A network that can be a critic overrides both; here they raise ValueError.
        """
        raise ValueError(f"a {self.kind} network shows no features; a critic needs a network that does")

    def read_out(self, features: Tensor, xt: Joint, wanted: Collection[str] | None = None) -> Joint:
        """Features -> the raw prediction for every wanted stream, of the shapes of xt."""
        raise ValueError(f"a {self.kind} network shows no features; a critic needs a network that does")

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, in order: what is computed again to save memory, and cut over many processes."""
        return []

    def block_layers(self) -> list[str]:
        """The linear layers of the blocks, by dotted name: nearly all of the weights and of the work."""
        inside = {layer for block in self.blocks() for layer in block.modules() if isinstance(layer, nn.Linear)}
        return [name for name, layer in self.named_modules() if layer in inside]

    def describe(self) -> dict[str, Any]:
        """A JSON-able description from which `build` makes the same network."""
        return {"kind": self.kind, **dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from the fields of `Config`; lists become tuples, unknown or missing fields are a ValueError."""
        fields = {f.name for f in dataclasses.fields(cls.Config)}
        if unknown := sorted(set(config) - fields):
            raise ValueError(
                f"a {cls.kind} network has no setting {', '.join(unknown)}; it has {', '.join(sorted(fields))}"
            )
        try:
            return cls(cls.Config(**{name: _tuples(value) for name, value in config.items()}))
        except TypeError as error:
            raise ValueError(f"the settings of the {cls.kind} network do not fit: {error}") from error


def _tuples(value: Any) -> Any:
    """JSON knows only lists; shapes are tuples."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def kinds() -> list[str]:
    """The networks that can be named: the files of this folder that hold a `Network`."""
    return [m.name for m in pkgutil.iter_modules(__path__) if m.name != "autoencoder"]


def find(kind: str) -> type[Network]:
    """The network class of a kind; ValueError for a name that is not a file of this folder."""
    if kind not in kinds():
        raise ValueError(f"there is no network {kind!r}; there are {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    return next(
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Network) and member.__module__ == module.__name__
    )


def build(description: Mapping[str, Any]) -> Network:
    """The network that `Network.describe` described, with fresh weights."""
    config = dict(description)
    return find(str(config.pop("kind", None))).from_config(config)


def steadily(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """function(rows) of rows (..., D), each the same to the bit in any batch.

    A product of few rows adds up in another order than that of many, so few are padded to `STEADY_ROWS`.
    """
    flat = rows.flatten(0, -2)
    out = function(F.pad(flat, (0, 0, 0, max(STEADY_ROWS - len(flat), 0))))
    return out[: len(flat)].unflatten(0, rows.shape[:-1])

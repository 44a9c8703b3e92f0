"""What a modality is: raw data <-> the latent streams that a diffusion model sees.

One file of this folder is one modality (a codec), and the folder is the registry: `find("image")` is the `Modality` of
`modalities/image.py`, imported when it is asked for. A codec learns what it needs from the user's data (`fit`), can be
saved as JSON and tensors (`config`, `state`) and comes back from them (`restore`).

It does not know networks that diffuse, timesteps or roles, nor any other modality.
"""

import importlib
import inspect
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""What a modality may be called: it becomes a keyword, a flag and a file's name."""

Raw = TypeVar("Raw")


class Modality(ABC, Generic[Raw]):
    """A codec between raw values (pictures, sentences, ...) and latent streams of about zero mean and unit variance.

    A stream's name is relative: "" for the only stream of a modality, else a word ("latent", which a model that calls
    the modality "image" knows as "image.latent"). A 3-tuple shape (C, H, W) is a grid, a 2-tuple (L, D) a sequence.
    """

    kind: ClassVar[str]
    """The name of the file in this folder, and of the codec in a saved model."""
    media_type: ClassVar[str]
    """How to show a raw value: "image", "text", "sound" or "vector"."""
    suffix: ClassVar[str]
    """The ending of the files that `write` makes, with its dot."""
    lossy: ClassVar[bool] = False
    """Whether a decoded value that is encoded again is another latent; chains then hand on latents, not values."""

    @property
    @abstractmethod
    def streams(self) -> dict[str, tuple[int, ...]]:
        """Relative stream name -> shape of one sample."""

    @abstractmethod
    def check(self, raw: Any) -> Raw:
        """The canonical form of a raw value; ValueError, in one sentence, if it cannot be used."""

    @abstractmethod
    def encode(self, raws: Sequence[Raw]) -> dict[str, Tensor]:
        """B raw values -> relative stream name -> (B, ...) float32. Raises what `check` raises."""

    def encode_together(self, raws: Sequence[Raw]) -> dict[str, Tensor]:
        """As `encode`, but faster where it can be: a row's last bits may depend on the others. For training."""
        return self.encode(raws)

    @abstractmethod
    def decode(self, streams: Mapping[str, Tensor]) -> list[Raw]:
        """Relative stream name -> (B, ...), in or near the range of `encode`, to B raw values."""

    def encode_seeded(self, raws: Sequence[Raw], seeds: Sequence[int]) -> dict[str, Tensor]:
        """As `encode`, one seed a value: what a codec whose encoding is a distribution draws from it."""
        return self.encode(raws)

    def decode_seeded(self, streams: Mapping[str, Tensor], seeds: Sequence[int]) -> list[Raw]:
        """As `decode`, one seed a value: what a codec whose decoding is a distribution draws from it."""
        return self.decode(streams)

    def choose_decoding(self, **options: Any) -> None:
        """How values are decoded from now on, for codecs that can do it in more than one way (top_p for captions).

        A codec that can overrides this; here it raises ValueError.
        """
        raise ValueError(f"a value of kind {self.kind!r} is decoded in one way only; leave out {', '.join(options)}")

    def resized(self, width: int, height: int) -> Self:
        """The same codec for values of another size in pixels; ValueError unless it can have one."""
        raise ValueError(f"a value of kind {self.kind!r} has no width and height; leave the size out")

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None, *, keep: bool = True) -> None:
        """Where, in which numbers and for how long a codec with large parts holds them; others need do nothing.

        dtype: absent, the codec's own choice. keep: whether a part stays in memory between uses.
        """

    def empty(self) -> dict[str, Tensor]:
        """What says nothing, as a clean value: relative stream name -> (1, ...), for guidance against "empty".

        A codec that has such a value overrides this; here it raises ValueError.
        """
        raise ValueError(f"a value of kind {self.kind!r} cannot be empty; use guidance against 'marginal'")

    def part(self, raw: Any, mask: Any = None) -> tuple[Raw, dict[str, Tensor]]:
        """A raw value with holes -> (a whole value, relative stream -> which of it is known, bool of the shape).

        What stands in the holes of the whole value is of no account. mask: where the holes are, if the raw value itself
        does not say. A codec whose values can be given in part overrides this; here it raises ValueError.
        """
        raise ValueError(f"a value of kind {self.kind!r} cannot be given in part; give the whole or nothing")

    @abstractmethod
    def read(self, path: str | Path) -> Raw:
        """The checked raw value in a file; OSError if it cannot be opened, ValueError if it cannot be used."""

    @abstractmethod
    def write(self, raw: Raw, path: str | Path) -> None:
        """Write a raw value to a file, which `read` can read."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """All that is not a tensor, as JSON can hold it."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The tensors."""

    @classmethod
    @abstractmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec whose `config()` and `state()` these are; ValueError if they are not.

        state: may read a tensor from its file only when it is asked for it.
        """

    @classmethod
    @abstractmethod
    def fit(cls, *raws: Any, **options: Any) -> Self:
        """`fit(raws, **options)`: learn what the codec needs from an iterable of raw values; a file states its options.

        Raises: ValueError if there are no raw values, one of them cannot be used, or an option is out of range.
        """


@runtime_checkable
class SeesPixels(Protocol):
    """A codec of pictures through which gradients pass: for pictures that are rendered."""

    @property
    def side(self) -> int:
        """The shorter side of its pictures, in pixels."""

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """As `encode` of pictures that are tensors (B, 3, S, S) in [-1, 1] of any size, with gradients."""


def kinds() -> list[str]:
    """The names of all modalities: the files of this folder, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(kind: str) -> type[Modality[Any]]:
    """The codec of the file `kind`.py of this folder; ValueError if there is no such file."""
    if kind not in kinds():
        raise ValueError(f"there is no modality {kind!r}; choose one of {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Modality) and value.__dict__.get("kind") == kind:
            return value
    raise ValueError(f"the file modalities/{kind}.py has no Modality whose kind is {kind!r}; add one")


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """ValueError, naming those there are, for an option that `fit` of this kind does not know."""
    parameters = inspect.signature(find(kind).fit).parameters.values()
    known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if not free and (unknown := sorted(set(options) - set(known))):
        choice = f"choose from {', '.join(known)}" if known else "it has none"
        raise ValueError(f"the modality {kind} has no option {unknown[0]!r}; {choice}")


def expect_keys(owner: str, given: Any, wanted: Collection[str]) -> None:
    """ValueError unless a saved config or state is a dict with exactly the wanted keys."""
    if not isinstance(given, Mapping):
        raise ValueError(f"the saved {owner} is not a table of names and values; it is damaged")
    if set(given) != set(wanted):
        missing, foreign = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        raise ValueError(
            f"the saved {owner} has the wrong entries: missing {missing}, unknown {foreign}; "
            "it is damaged or was made by another version"
        )


def expect_shape(owner: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """ValueError unless a tensor has this shape, the batch aside, and only finite numbers (-1 stands for any size)."""
    shape = tuple(tensor.shape)
    if len(shape) != len(wanted) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
        raise ValueError(f"{owner} has the shape {shape}; it must be {wanted} (-1: any size)")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{owner} holds numbers that are not finite (NaN or infinity)")


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """ValueError unless a value is a whole number from `least` to `most`; `name` stands in the message."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"the {name} is {value!r}; it must be a whole number from {least} to {most}")

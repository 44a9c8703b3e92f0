"""The codecs of a model together: modality -> raw values on one side, stream -> tensor on the other.

A codec knows its streams by relative names; here they get the full names of the joint ("image", or "image.latent" for a
modality of several streams). What a user gives is checked here. This file knows no network and no timestep.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unidiffuser.joint import Joint, modality_of
from unidiffuser.modalities import Modality

Known = dict[str, tuple[Tensor, Tensor]]
"""Stream -> (values (B, ...), which of them are known)."""


class Codecs:
    """The codecs of a model by modality."""

    def __init__(self, modalities: Mapping[str, Modality[Any]]) -> None:
        self.modalities = dict(modalities)
        self.shapes = {
            _full(name, stream): tuple(shape)
            for name, codec in self.modalities.items()
            for stream, shape in codec.streams.items()
        }

    def __getitem__(self, name: str) -> Modality[Any]:
        """The codec of a modality; ValueError if there is no such modality."""
        self.check_names([name])
        return self.modalities[name]

    def check_names(self, names: Iterable[str]) -> None:
        """ValueError for a modality that the model does not have."""
        for name in names:
            if name not in self.modalities:
                raise ValueError(f"this model has no modality {name!r}; it has {', '.join(self.modalities)}")

    def encode(self, values: Mapping[str, list[Any]], seeds: Sequence[int] | None = None) -> Joint:
        """Modality -> B raw values, as streams (B, ...) on the CPU. Raises what the codecs' `check` raises.

        seeds: one a sample, for codecs whose encoding is a distribution; absent: its mean.
        """
        joint: Joint = {}
        for name, raws in values.items():
            codec = self[name]
            checked = [codec.check(raw) for raw in raws]
            streams = codec.encode(checked) if seeds is None else codec.encode_seeded(checked, seeds)
            joint |= {_full(name, stream): x for stream, x in streams.items()}
        return joint

    def decode(self, joint: Joint, seeds: Sequence[int] | None = None) -> dict[str, list[Any]]:
        """Streams (B, ...) as modality -> B raw values; a modality needs all its streams.

        seeds: one a sample, for codecs whose decoding is a distribution.
        """
        present = {modality_of(stream) for stream in joint}
        values = {}
        for name, codec in self.modalities.items():
            if name in present:
                streams = {stream: joint[_full(name, stream)].float().cpu() for stream in codec.streams}
                values[name] = codec.decode(streams) if seeds is None else codec.decode_seeded(streams, seeds)
        return values

    def empty(self, names: Iterable[str]) -> Joint:
        """The empty values (1, ...) of some modalities; ValueError for one that has none."""
        return {_full(name, stream): x for name in names for stream, x in self[name].empty().items()}

    def given(
        self,
        sampled: Iterable[str],
        n: int,
        given: Mapping[str, Any],
        masks: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> tuple[dict[str, list[Any]], Known]:
        """What a user gives for n samples with these seeds: one value or a list of n for each modality.

        Returns:
            The checked values of what is given whole, n of each; and what is known of what is both sampled and given.

        Raises:
            ValueError: an unknown modality, a wrong number of values, a mask alone, a value that its codec refuses.
        """
        for name in masks:
            if name not in sampled or name not in given:
                raise ValueError(f"a mask of {name!r} needs {name!r} both sampled and given: name it and pass a value")
        known: Known = {}
        for name in sampled:
            if name in given:
                known |= self._known(name, _rows(name, given[name], n), masks.get(name), seeds)
        return self.whole(n, {name: value for name, value in given.items() if name not in sampled}), known

    def whole(self, n: int, given: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What is given whole, one value or a list of n for each modality, checked: n of each."""
        values = {}
        for name, value in given.items():
            codec = self[name]
            values[name] = [codec.check(raw) for raw in _rows(name, value, n)]
        return values

    def _known(self, name: str, raws: list[Any], mask: Any, seeds: Sequence[int]) -> Known:
        """What is known of a modality given in part."""
        codec = self[name]
        parts = [codec.part(raw, mask) for raw in raws]
        clean = codec.encode_seeded([raw for raw, _ in parts], seeds)
        return {_full(name, s): (x, torch.stack([known[s] for _, known in parts])) for s, x in clean.items()}


def _rows(name: str, value: Any, n: int) -> list[Any]:
    """One value, or a list of n, as n values."""
    raws = value if isinstance(value, list) else [value]
    if len(raws) not in (1, n):
        raise ValueError(f"{len(raws)} values of {name!r} are given for {n} samples; give one value, or {n}")
    return raws * (n // len(raws))


def _full(modality: str, stream: str) -> str:
    """A codec's relative stream name as the joint knows it."""
    return f"{modality}.{stream}" if stream else modality

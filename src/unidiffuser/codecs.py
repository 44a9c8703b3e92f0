"""The codecs of a model together: modality -> raw values on one side, stream -> tensor on the other.

A codec knows its streams by relative names; here they get the full names of the joint ("image", or "image.latent" for a
modality of several streams). What a user gives is checked here. This file knows no network and no timestep.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidiffuser.joint import Joint, cat_joints, modality_of, streams_of
from unidiffuser.modalities import Modality

Known = dict[str, tuple[Tensor, Tensor]]
"""Stream -> (values (B, ...), which of them are known)."""


@dataclass(frozen=True)
class Latent:
    """A value that is given by the streams it was decoded from: what a lossy codec loses is then not lost."""

    raw: Any
    """The decoded value, for people."""
    streams: Mapping[str, Tensor]
    """Full stream name -> (...), of this value alone."""


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
            joint |= self._encoded(name, raws, seeds)
        return joint

    def _encoded(self, name: str, raws: list[Any], seeds: Sequence[int] | None) -> Joint:
        """The streams of one modality."""
        if len(raws) > 1 and any(isinstance(raw, Latent) for raw in raws):
            rows = range(len(raws))
            return cat_joints([self._encoded(name, [raws[k]], None if seeds is None else [seeds[k]]) for k in rows])
        if raws and isinstance(raws[0], Latent):
            return {stream: raws[0].streams[stream][None] for stream in streams_of(name, self.shapes)}
        codec = self[name]
        checked = [codec.check(raw) for raw in raws]
        streams = codec.encode(checked) if seeds is None else codec.encode_seeded(checked, seeds)
        return {_full(name, stream): x for stream, x in streams.items()}

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
        return {name: [self._checked(name, raw) for raw in _rows(name, value, n)] for name, value in given.items()}

    def _checked(self, name: str, raw: Any) -> Any:
        if not isinstance(raw, Latent):
            return self[name].check(raw)
        shapes = {stream: tuple(x.shape) for stream, x in raw.streams.items()}
        wanted = {stream: self.shapes[stream] for stream in streams_of(name, self.shapes)}
        if shapes != wanted:
            raise ValueError(f"the latent given for {name!r} has the streams {shapes}, but this model has {wanted}")
        return raw

    def _known(self, name: str, raws: list[Any], mask: Any, seeds: Sequence[int]) -> Known:
        """What is known of a modality given in part."""
        codec = self[name]
        parts = [codec.part(raw.raw if isinstance(raw, Latent) else raw, mask) for raw in raws]
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

"""The codecs of a run: fitted to its data once, kept in RUN/codecs, and read back when the run goes on.

    {"kind": "image", "size": 64}                       pixels
    {"kind": "image", "autoencoder": {"size": 256}}     latents of an autoencoder, which is trained first
    {"kind": "text", "width": 16}, {"kind": "sound", ...}, {"kind": "vector"}      options of that file's `fit`

It does not train an autoencoder: it is handed one.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unidiffuser import modalities
from unidiffuser.codecs import Codecs
from unidiffuser.datasets import Pairs
from unidiffuser.datasets.codec_files import load_codecs, save_codecs
from unidiffuser.modalities import Modality
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig
from unidiffuser.training import warm
from unidiffuser.training.preset import Preset

LOOKED_AT = 1000
"""So many values tell the shapes of codecs for an estimate."""

Autoencoders = Callable[[str], AutoEncoder]
"""The trained autoencoder of a modality, made when it is asked for."""


Values = Callable[[str, int], Iterator[Any]]
"""(modality, most) -> raw values."""


def fit_codec(name: str, entry: Mapping[str, Any], values: Values, count: int, autoencoder: Autoencoders) -> Any:
    """Fit the codec of one modality on at most `count` values.

    Raises:
        ValueError: its kind is unknown, an option is out of range, or no pair has a usable value.
    """
    options = {key: x for key, x in entry.items() if key not in ("kind", "autoencoder")}
    kind = modalities.find(str(entry.get("kind", name)))
    if entry.get("autoencoder"):
        options = {"autoencoder": autoencoder(name)}
    try:
        return kind.fit(values(name, count), **options)
    except TypeError as error:
        raise ValueError(f"the codec of {name!r} ({kind.kind}) has no such option: {error}") from error
    except ValueError as error:
        raise ValueError(f"the codec of {name!r} cannot be fitted: {error}") from error


def shapes_of(preset: Preset) -> dict[str, tuple[int, ...]]:
    """Stream -> shape of the codecs of a run; those that it would fit have an autoencoder that is not trained."""

    def fresh(name: str) -> AutoEncoder:
        return AutoEncoder(AutoEncoderConfig(**preset.codecs[name]["autoencoder"]))

    values = preset.values or partial(first_values, preset.pairs)
    known = warm.known_codecs(preset)
    made = {
        name: fit_codec(name, entry, values, min(preset.fitted_on, LOOKED_AT), fresh)
        for name, entry in preset.codecs.items()
        if name not in known
    }
    return Codecs(known | made).shapes


def first_values(pairs: Pairs, name: str, most: int) -> Iterator[Any]:
    """The values of a modality among the first pairs; pairs without it, or that cannot be read, are passed over."""
    for i in range(min(most, len(pairs))):
        try:
            value = pairs[i].get(name)
        except (ValueError, OSError):
            continue  # it is counted and named when it comes up in training
        if value is not None:
            yield value


@dataclass(frozen=True)
class Having:
    """Pairs that all have a modality: in the place of one that has not, or cannot be read, stands the next."""

    pairs: Pairs
    modality: str

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        for step in range(len(self.pairs)):
            try:
                pair = self.pairs[(index + step) % len(self.pairs)]
            except (ValueError, OSError):
                continue  # it is counted and named when it comes up in the network's training
            if pair.get(self.modality) is not None:
                return pair
        raise ValueError(f"no pair of the data has a {self.modality} that can be read")


def write(folder: Path, codecs: Mapping[str, Modality[Any]]) -> None:
    """Write codecs to a folder, all or nothing."""
    aside = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_codecs(aside, codecs)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)


def read(folder: Path) -> dict[str, Modality[Any]] | None:
    """The codecs in a folder; None if there are none.

    Raises:
        ValueError: they are damaged.
    """
    return load_codecs(folder, "remove that folder to fit them anew") if folder.is_dir() else None

"""From one format to another: what a folder holds is recognised, read, and written anew.

    read     original files (thu_ml), a diffusers folder, our own
    write    our own, a diffusers folder

A folder may be named as a repository of the hub; it is then taken from the local cache, or fetched if that is allowed.
"""

from collections.abc import Mapping
from pathlib import Path

from unidiffuser.checkpoints import ModelError, Parts, diffusers, hub, native, thu_ml
from unidiffuser.checkpoints.released import parts_of

TARGETS = ("native", "diffusers")


def read(
    source: str | Path,
    *,
    beside: Mapping[str, Path] | None = None,
    heads: int | None = None,
    download: bool = False,
) -> tuple[Parts, list[str]]:
    """The model in a folder of any format, and what it cannot do for want of a part.

    Args:
        beside, heads: for original files, see `thu_ml.read`.
        download: whether a repository of the hub may be fetched.

    Raises:
        ModelError: no such folder, no format that is known, or a fault that the format names.
    """
    folder = hub.locate(source, download=download)
    if (folder / native.CONFIG).is_file() and (folder / native.CHECKSUMS).is_file():
        return native.read(folder), []
    if diffusers.recognises(folder):
        pieces = diffusers.read(folder)
    elif thu_ml.recognises(folder):
        pieces = thu_ml.read(folder, beside=beside, heads=heads)
    else:
        raise ModelError(
            f"{folder} holds no model that is known: neither original files ({', '.join(thu_ml.NETWORKS)}, "
            f"{thu_ml.CAPTIONS}, {thu_ml.AUTOENCODER}) nor a diffusers folder ({diffusers.INDEX}) nor one of ours"
        )
    return parts_of(pieces), pieces.missing()


def write(
    folder: Path, parts: Parts, target: str = "native", *, stored: native.Stored = "float32", force: bool = False
) -> None:
    """Write a model in a format of `TARGETS`.

    Raises:
        ValueError: an unknown format, or a place that is taken.
    """
    if target not in TARGETS:
        raise ValueError(f"there is no format {target!r} to write; there are {', '.join(TARGETS)}")
    if target == "native":
        native.write(folder, parts, stored=stored, force=force)
    else:
        diffusers.write(folder, parts, stored=native.DTYPES[stored])

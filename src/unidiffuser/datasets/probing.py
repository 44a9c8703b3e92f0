"""Options that a person left out, derived from the first samples: the size of pictures, the grid of sounds.

Pictures: the side is the median of the shorter sides, to the nearest multiple of 8, from 8 to 64 (what trains on a
laptop; declare more for more); grey if all of them are. Sounds: their sample rate up to 16 kHz, and so many frames as
hold the longest, to a multiple of 8, up to 512.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image

from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.faults import Damaged
from unidiffuser.datasets.files import Blob
from unidiffuser.modalities import sound as sounds
from unidiffuser.modalities.image import FORMATS

PROBED = 64
LARGEST = 64
FASTEST = 16_000
LONGEST = 512


def derived(kinds: Mapping[str, Mapping[str, Any]], cases: Sequence[RawCases]) -> dict[str, dict[str, Any]]:
    """The kinds with what was left out put in."""
    found = {}
    for name, options in kinds.items():
        cells = islice((cell for each in cases for cell in _cells(each, name)), PROBED)
        derive = {"image": _of_pictures, "sound": _of_sounds}.get(options["kind"])
        found[name] = {**(derive(cells, options) if derive else {}), **options}
    return found


def _cells(cases: RawCases, modality: str) -> Iterator[Any]:
    """Some cells of a modality, spread over a source, a file as its bytes."""
    if modality not in cases.wanted:
        return
    column = cases.wanted[modality].column.names[0]
    for k in range(min(PROBED, len(cases))):
        try:
            cell = cases.rows.cells(int(cases.picked[k * len(cases) // min(PROBED, len(cases))]), [column])[column]
            if isinstance(cell, Blob):
                cell = cell.read()
            if isinstance(cell, bytes | np.ndarray):
                yield cell
        except Damaged:
            continue


def _of_pictures(cells: Iterator[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if "autoencoder" in options or {"size", "channels"} <= set(options):
        return {}
    sides, grey = [], []
    for cell in cells:
        if isinstance(cell, np.ndarray):
            sides.append(min(cell.shape[:2]) if cell.ndim > 1 else 0)
            grey.append(cell.ndim == 2 or cell.shape[-1] == 1)
            continue
        try:
            with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(cell), formats=FORMATS) as picture:
                sides.append(min(picture.size))
                grey.append(picture.mode in ("1", "L", "I;16"))
        except Exception:  # on hostile bytes Pillow raises nearly anything; reading the sample will say so
            continue
    if not sides:
        return {}
    side = 8 * max(1, min(LARGEST // 8, int(np.median(sides) / 8 + 0.5)))
    return {"size": side, "channels": 1 if all(grey) else 3}


def _of_sounds(cells: Iterator[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if {"sample_rate", "frames"} <= set(options):
        return {}
    seconds, rates = [], []
    for cell in cells:
        if isinstance(cell, bytes):
            try:
                samples, rate = sounds.decode_wav(io.BytesIO(cell), "given")
            except ValueError:
                continue
            seconds.append(len(samples) / rate)
            rates.append(rate)
    if not rates:
        return {}
    rate = int(options.get("sample_rate", min(FASTEST, max(rates))))
    hop = int(options.get("hop", sounds.SoundConfig.hop))
    frames = -(-int(np.ceil(max(seconds) * rate / hop)) // 8) * 8
    return {"sample_rate": rate, "frames": max(8, min(LONGEST, frames))}

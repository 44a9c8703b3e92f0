"""A cell of a row -> the raw values of a modality, by its media type. Nothing is guessed, and what is wrong is said.

    image    the bytes of a PNG, JPEG or WebP, or a uint8 array   ->  an upright picture
    sound    the bytes of a .wav, or an array of floats           ->  a wave at the modality's sample rate
    vector   numbers, one or a row                                ->  float32 (D,)
    text     text, a list of texts, the bytes of a .txt           ->  one or several captions

A cell that is nothing (null, no or blank text, an empty list) gives no value: the sample lacks that modality. A whole
number is a text of digits, or a name if the declaration lists names. Anything else is `Damaged`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unidiffuser.datasets.faults import Damaged, DataLost
from unidiffuser.datasets.files import Blob
from unidiffuser.modalities import image as images
from unidiffuser.modalities import sound as sounds
from unidiffuser.modalities import text as texts
from unidiffuser.modalities import vector as vectors

GIVEN = "given"


def values_of(cell: Any, media_type: str, options: Mapping[str, Any], names: Mapping[str, str] | None) -> list[Any]:
    """The raw values in a cell: none, one, or the several captions of a text.

    Args:
        cell: what `Rows.cells` gives; a list of cells where a modality is made of several columns.
        media_type: of the modality: "image", "text", "sound" or "vector".
        options: the modality's, of which a sound needs its sample rate.
        names: value -> name, for a text.

    Raises:
        Damaged: the cell holds something that cannot be used.
        DataLost: the folder is gone.
    """
    if isinstance(cell, dict):
        raise Damaged(str(cell["refused"]) if set(cell) == {"refused"} else "a value is a JSON object")
    if cell is None:
        return []
    try:
        if media_type == "text":
            return captions(cell, names)
        if media_type == "image":
            return [_picture(cell)]
        if media_type == "sound":
            return [_wave(cell, int(options.get("sample_rate", sounds.SoundConfig.sample_rate)))]
        return _vector(cell)
    except (Damaged, DataLost):
        raise
    except ValueError as error:
        raise Damaged(str(error)) from error


def captions(cell: Any, names: Mapping[str, str] | None = None) -> list[str]:
    """The captions in a cell, blank ones left out."""
    if isinstance(cell, Blob):
        cell = cell.read()
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Damaged("its text is not in UTF-8") from error
    if isinstance(cell, list):
        return [caption for each in cell for caption in captions(each, names)]
    if names is not None and not isinstance(cell, bool) and isinstance(cell, int | str):
        if str(cell) not in names:
            raise Damaged("a value has no name in the declaration")
        cell = names[str(cell)]
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)
    if cell is None:
        return []
    if not isinstance(cell, str):
        kind = "an object" if isinstance(cell, dict) else "true or false" if isinstance(cell, bool) else "a number"
        raise Damaged(f"its text is {kind}")
    cell = cell.removeprefix("\ufeff")
    if len(cell) > texts.MAX_CHARACTERS:
        raise Damaged(f"its text is longer than {texts.MAX_CHARACTERS} characters")
    return [texts.plain(cell)] if cell.strip() else []


def _picture(cell: Any) -> images.Picture:
    if isinstance(cell, Blob):
        cell = cell.read()
    if isinstance(cell, bytes):
        return images.upright(images.open_picture(cell, GIVEN))
    if isinstance(cell, np.ndarray):
        return images.upright(cell)
    raise Damaged("a picture must be a file, bytes or an array, and not a text or a number")


def _wave(cell: Any, rate: int) -> sounds.Wave:
    if isinstance(cell, Blob):
        cell = cell.read()
    if isinstance(cell, bytes):
        samples, own_rate = sounds.decode_wav(io.BytesIO(cell), GIVEN)
        return sounds.resample(samples, own_rate, rate).clip(-1, 1)
    if isinstance(cell, np.ndarray) and cell.dtype.kind == "f" and cell.ndim == 1 and np.isfinite(cell).all():
        return cell.astype(np.float32).clip(-1, 1)
    raise Damaged("a sound must be a .wav file, its bytes, or a row of finite floats")


def _vector(cell: Any) -> list[Any]:
    row = cell if isinstance(cell, np.ndarray) else [cell] if not isinstance(cell, Sequence) else list(cell)
    if isinstance(row, list):
        if any(each is None or each == "" for each in row):
            return []
        row = [_number(each) for each in row]
    return [vectors.numbers(row)]


def _number(value: Any) -> float:
    """A number, also one that CSV holds as text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError) as error:
        raise Damaged("a vector holds something that is no number") from error

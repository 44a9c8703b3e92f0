"""Reading the files of a model as what a stranger may have put there.

JSON without duplicate keys and without numbers that are none, the header of a safetensors file before any memory is
taken for its tensors, and what is often found in place of either: nothing, an error page, a Git-LFS pointer, a pickle.
Every fault is a `ModelError` of one sentence. It knows no model and no format of ours.
"""

import math
import struct
from pathlib import Path
from typing import Any

from unidiffuser import strict_json
from unidiffuser.checkpoints import ModelError
from unidiffuser.pretrained import MissingPackage

MAX_JSON = 16 * 2**20
MAX_HEADER = 16 * 2**20
MAX_TENSORS = 100_000
MAX_PARAMETERS = 4_000_000_000
STORED = {"F32", "F16", "BF16"}
AGAIN = "fetch or save the model again"

Header = dict[str, tuple[int, ...]]
"""Tensor name -> shape."""


class naming:
    """Names the file in a ValueError raised inside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModelError | MissingPackage):
            return
        if isinstance(error, ValueError | TypeError | KeyError | RuntimeError):
            raise ModelError(f"{self.path} does not describe a model: {one_line(error)}; {AGAIN}") from error


def check_content(path: Path, start: bytes) -> None:
    """Refuse what is often found in place of a file: nothing, an error page, a pointer, a pickle."""
    found = ""
    if not start:
        found = "is empty, probably an unfinished download"
    elif start.lstrip()[:1] == b"<":
        found = "is a web page, probably an error page saved by a download"
    elif start.startswith(b"version https://git-lfs"):
        found = "is a Git-LFS pointer and not the file itself; run `git lfs pull`, or"
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        found = "is a pickle under another name, which is never opened; convert it to safetensors, or"
    if found:
        raise ModelError(f"{path} {found}{'' if found.endswith('or') else ';'} {AGAIN}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, strictly: no duplicate keys, no NaN."""
    if path.stat().st_size > MAX_JSON:
        raise ModelError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_JSON} a model needs; {AGAIN}")
    data = path.read_bytes()
    check_content(path, data[:64])
    try:
        value = strict_json.parse(data)
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({one_line(error)}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object; {AGAIN}")
    return value


def read_header(path: Path) -> Header:
    """Tensor name -> shape, from a safetensors header that is read as hostile: sizes are checked before use."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise ModelError(f"{path} is not a whole safetensors file (its header does not fit); {AGAIN}")
        data = file.read(length)
    try:
        header = strict_json.parse(data)
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        types = {entry["dtype"] for entry in header.values()}
        good = all(type(n) is int and n >= 0 for shape in shapes.values() for n in shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} has a damaged safetensors header ({one_line(error)}); {AGAIN}") from error
    if not good or not types <= STORED:
        raise ModelError(f"{path} must hold tensors of {', '.join(sorted(STORED))}, not {sorted(types)}; {AGAIN}")
    count = sum(math.prod(shape) for shape in shapes.values())
    if len(shapes) > MAX_TENSORS or count > MAX_PARAMETERS:
        raise ModelError(f"{path} holds {len(shapes)} tensors with {count} numbers; at most {MAX_PARAMETERS} are read")
    return shapes


def listed(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and of bearable length."""
    return " ".join(str(error).split())[:200]

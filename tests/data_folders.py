"""Small data sets in several formats, for tests: pictures of one colour each, whose captions say which sample it is."""

import io
import json
import tarfile
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def colour(k: int) -> tuple[int, int, int]:
    """The colour of picture k, another one for each k below 4096."""
    return (k % 16 * 16, k // 16 % 16 * 16, k // 256 % 16 * 16)


def which(picture: Any) -> int:
    """The k whose picture this is."""
    red, green, blue = np.asarray(picture)[0, 0]
    return int(red) // 16 + int(green) // 16 * 16 + int(blue) // 16 * 256


def png(k: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """The bytes of picture k."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour(k)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(k: int, samples: int = 400, rate: int = 8000) -> bytes:
    """The bytes of sound k, a constant level."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.full(samples, 100 * k, "<i2").tobytes())
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Put files into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def picture_folder(folder: Path, n: int = 4, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Pictures 0.png, 1.png, ... with metadata.jsonl."""
    if rows is None:
        rows = [{"file_name": f"{k}.png", "text": f"picture {k}"} for k in range(n)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return write(folder, {**{f"{k}.png": png(k) for k in range(n)}, "metadata.jsonl": lines})


def tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar archive of these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard_members(ks: Iterable[int], **columns: Sequence[Any]) -> list[tuple[str, bytes]]:
    """Members as img2dataset writes them; columns: more entries of the .json, by sample."""
    members = []
    for k in ks:
        about = {
            "caption": f"picture {k}",
            "key": f"{k:05d}",
            "status": "success",
            "width": 8,
            "original_width": 100 + k,
        }
        about |= {name: values[k] for name, values in columns.items()}
        members += [(f"{k:05d}.png", png(k)), (f"{k:05d}.txt", f"picture {k}".encode())]
        members += [(f"{k:05d}.json", json.dumps(about).encode())]
    return members

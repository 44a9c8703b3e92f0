"""Files of a data set: which there are inside its folder, and their bytes, with bounded retries.

A name inside a data set (of a row, an archive's member, a declaration) is a stranger's: `inside` takes relative names
that stay in the folder, and nothing else. Links are followed only to files inside the folder. Nothing is fetched, no
pattern is expanded, and no command is run.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unidiffuser.datasets.faults import Damaged, DataLost

T = TypeVar("T")

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SOUNDS = frozenset({".wav"})
MAX_BLOB = 2**28
WAITS = (0.5, 2.0, 8.0)
"""Seconds between the attempts to read a file that is not to be had."""
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP}
"""Errors that say something about one file, if its folder can still be read."""


def inside(name: object, folder: str = "") -> str:
    """A stranger's file name as a plain relative path below the root of the data.

    folder: where the name is relative to, itself relative to the root.

    Raises: ValueError if it is no name, absolute, an address, or leads out of its folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a file name must be text, not {str(name)[:80]!r}")
    if "://" in name or name.startswith("pipe:"):
        raise ValueError(
            f"the file name {name[:80]!r} is an address or a command; nothing is fetched or run: use files"
        )
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
        raise ValueError(
            f"the file name {name[:80]!r} leads out of its folder; names must be relative and stay inside the data set"
        )
    return "/".join([*([folder] if folder else []), *(part for part in parts if part not in ("", "."))])


def local(path: str | Path) -> Path:
    """The path of a data set that a person named; ValueError for an address, a command, a pattern, or nothing there."""
    text = str(path)
    if not text:
        raise ValueError("the path of the data is empty; give a folder")
    if "://" in text or text.startswith("pipe:"):
        raise ValueError(
            f"{text[:80]!r} is an address or a command; nothing is fetched or run: give a folder or a file"
        )
    found = Path(path)
    if not found.exists():
        patterned = re.search(r"[*?\[\]{}]", text)
        cure = "patterns are not expanded: give the folder that holds the files" if patterned else "check the path"
        raise ValueError(f"there is no data {text[:200]!r}; {cure}")
    return found


@dataclass(frozen=True)
class Tree:
    """The files below a folder."""

    root: Path
    """The folder."""
    sizes: dict[str, int]
    """Relative name -> bytes, in alphabetical order."""
    outside: frozenset[str]
    """Links that lead out of the folder, to a folder, or nowhere; pipes, sockets, devices. They are not opened."""

    def suffixed(self, *suffixes: str) -> list[str]:
        """The names with one of these endings, whatever their case."""
        return [name for name in self.sizes if name.lower().endswith(suffixes)]

    def find(self, name: object, folder: str = "") -> str | None:
        """The file that a row names, or None if there is none; ValueError for a name or a link that leads outside."""
        relative = inside(name, folder)
        if relative in self.outside:
            raise ValueError(
                f"the file {relative[:80]!r} is no plain file in {self.root}, or a link that leads out: copy it there"
            )
        return relative if relative in self.sizes else None


def scan(root: Path, deep: bool = True) -> Tree:
    """All files below a folder, or in it alone, that are no hidden ones; hidden names begin with a dot."""
    sizes: dict[str, int] = {}
    outside: set[str] = set()
    real = root.resolve()
    for folder, entry in _walk(root, "", deep):
        name = f"{folder}{entry.name}"
        if entry.is_file(follow_symlinks=False):
            sizes[name] = entry.stat(follow_symlinks=False).st_size
        elif entry.is_symlink() and (target := Path(entry.path).resolve()).is_file() and target.is_relative_to(real):
            sizes[name] = target.stat().st_size
        else:
            outside.add(name)
    return Tree(root, dict(sorted(sizes.items())), frozenset(outside))


def _walk(path: Path, prefix: str, deep: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {path} cannot be read ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield prefix, entry
        elif deep:
            yield from _walk(path / entry.name, f"{prefix}{entry.name}/", deep)


def training_part(names: list[str]) -> tuple[list[str], list[str]]:
    """Names of parts (files or folders) -> (those to train on, those held out).

    Where some are called train and others test, validation, ..., the others are held out; else all are to train on.
    """
    words = [set(re.findall(r"[a-z]+", name.lower())) for name in names]
    if not any(word & {"train", "training"} for word in words):
        return names, []
    held_out = [bool(word & {"test", "testing", "val", "valid", "validation", "dev", "eval"}) for word in words]
    held_out = [held and not word & {"train", "training"} for held, word in zip(held_out, words, strict=True)]
    return (
        [name for name, held in zip(names, held_out, strict=True) if not held],
        [name for name, held in zip(names, held_out, strict=True) if held],
    )


@dataclass(frozen=True)
class Blob:
    """The bytes of a file or of a part of one, read when asked for."""

    path: Path
    """The file."""
    root: Path
    """The folder whose loss is the loss of the data."""
    offset: int = 0
    """Where the part begins."""
    size: int | None = None
    """Its bytes; None for all from there on."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            Damaged: the file is gone, cut short or larger than 256 MiB.
            DataLost: the folder cannot be read, also after some attempts.
        """
        if self.size is not None and self.size > MAX_BLOB:
            raise Damaged(f"it is larger than {MAX_BLOB >> 20} MiB")
        data = persistently(self._read, self.root)
        if len(data) > MAX_BLOB:
            raise Damaged(f"it is larger than {MAX_BLOB >> 20} MiB")
        if self.size is not None and len(data) < self.size:
            raise Damaged("its file is cut short")
        return data

    def _read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(MAX_BLOB + 1 if self.size is None else self.size)


def persistently(read: Callable[[], T], root: Path) -> T:
    """What `read` gives, tried again after each of WAITS.

    Raises:
        Damaged: the file cannot be read, but its folder can.
        DataLost: the folder `root` cannot be read either.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except OSError as error:
            there, why = _readable(root), os.strerror(error.errno) if error.errno else "it is damaged"
            if there and (error.errno is None or error.errno in GONE or wait is None):
                raise Damaged(f"its file cannot be read ({why})") from error
            if wait is None:
                raise DataLost(
                    f"the data in {root} cannot be read any more ({why}); bring the folder back and give "
                    "the same command again"
                ) from error
            time.sleep(wait)
    raise AssertionError


def _readable(folder: Path) -> bool:
    """Whether a folder, or a file that stands for one, is there and can be read."""
    try:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                return next(entries, None) is not None
        return folder.is_file()
    except OSError:
        return False

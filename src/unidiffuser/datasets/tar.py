"""An index of a tar archive: where the bytes of each member lie. Nothing is ever unpacked.

The archive is read header by header, and where that ends is looked at: an archive that is whole ends with zero blocks
and nothing after them. So a cut, also on the border between two members, a flipped byte in a header and a header of
zeros are all noticed, where a reader that stops at the first bad header takes them for the end.
Members that are no plain files (links, devices, sparse files) and long names beyond reason are passed over, and said.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
CHUNK = 2**20
MAX_RECORD = 2**16
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
NAMES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)


@dataclass(frozen=True)
class Member:
    """A plain file in an archive."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Passed:
    """A member that is not used, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Broken:
    """The archive cannot be read on from here."""

    offset: int
    left: int
    """Bytes that cannot be reached."""
    why: str


def index(path: Path) -> Iterator[Member | Passed | Broken]:
    """What is in an archive, in order; `Broken` comes last, if at all."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            yield Broken(0, 0, "the shard is empty")
            return
        yield from _members(file, size)


def _members(file: BinaryIO, size: int) -> Iterator[Member | Passed | Broken]:
    offset = 0
    records: dict[str, str] = {}  # what a record before a member says of it
    while offset < size:
        block = _at(file, offset, BLOCK)
        if len(block) < BLOCK:
            yield Broken(offset, size - offset, "the shard is cut inside a header")
            return
        if not any(block):
            yield from _end(file, offset, size)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            yield Broken(offset, size - offset, "a header in the shard is damaged")
            return
        length = _length(header, records)
        start = _after_sparse_map(file, block, offset) if header.type == tarfile.GNUTYPE_SPARSE else offset + BLOCK
        if length < 0 or start + length > size:
            yield Broken(offset, size - offset, "the shard is cut inside a file")
            return
        if header.type in NAMES and length <= MAX_RECORD:
            records |= _record(header, _at(file, start, length))
        elif header.type in NAMES:
            yield Passed(header.name, "its record of names is too large")
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            yield from _member(header, records, start, length)
            records = {}
        offset = start + -(-length // BLOCK) * BLOCK
    yield Broken(size, 0, "the shard does not end as an archive does, so it may be cut between two files")


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _length(header: tarfile.TarInfo, records: Mapping[str, str]) -> int:
    """The bytes of data behind a header; negative if that is no number."""
    if header.type in WITHOUT_DATA:
        return 0
    if header.type in NAMES or "size" not in records:
        return header.size
    return int(records["size"]) if records["size"].isdecimal() and len(records["size"]) < 20 else -1


def _member(header: tarfile.TarInfo, records: Mapping[str, str], start: int, length: int) -> Iterator[Member | Passed]:
    name = records.get("path", header.name)
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in records):
        yield Passed(name, "sparse files are not read")
    elif header.type in PLAIN:
        yield Member(name, start, length)
    elif header.type != tarfile.DIRTYPE:
        yield Passed(name, "links are not followed" if header.type in LINKS else "only plain files are read")


def _record(header: tarfile.TarInfo, data: bytes) -> dict[str, str]:
    """What an extended header says: records "LENGTH KEY=VALUE" with a line break, or a long name alone."""
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while match := re.match(rb"(\d{1,6}) ", data):
        length = int(match[1])
        if not match.end() < length <= len(data):
            break
        key, _, value = data[match.end() : length - 1].partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


def _after_sparse_map(file: BinaryIO, block: bytes, offset: int) -> int:
    """Where the data of an old GNU sparse file begins: behind the blocks of its map."""
    more, offset = block[482], offset + BLOCK
    while more and len(block := _at(file, offset, BLOCK)) == BLOCK:
        more, offset = block[504], offset + BLOCK
    return offset


def _end(file: BinaryIO, offset: int, size: int) -> Iterator[Broken]:
    """Nothing, if only zeros follow a block of zeros."""
    for place in range(offset, size, CHUNK):
        if any(_at(file, place, CHUNK)):
            yield Broken(offset, size - offset, "a header in the shard is zeroed, or something follows its end")
            return

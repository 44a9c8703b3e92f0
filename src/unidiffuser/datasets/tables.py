"""Tables of text: .jsonl, .csv and, with pyarrow, .parquet, one row after the other, a broken row counted and left out.

Rows of JSON lines are read strictly. Rows of CSV are text; an empty cell is none.
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unidiffuser import strict_json
from unidiffuser.datasets.faults import Tally

SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_LINE = 2**24


def read_table(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    """The rows of a table.

    Raises:
        ValueError: the file is no table at all, or pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        from unidiffuser.datasets.parquet import plain_rows

        return plain_rows(path)
    return (_json_lines if path.suffix.lower() == ".jsonl" else _csv_rows)(path, tally)


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_lines(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            name = f"{path.name}:{number}"
            try:
                row = strict_json.parse(line)
            except ValueError as error:
                tally.count("damaged", _why_not_json(line, error), name)
                continue
            if isinstance(row, dict):
                yield row
            else:
                tally.count("damaged", "its line is JSON but no object", name)


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Lines, one that is longer than 16 MiB cut to nothing but a mark that is no JSON."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            line = b"{"
        yield line


def _why_not_json(line: bytes, error: ValueError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "its line is not text in UTF-8"
    known = ("a key occurs twice", "is not JSON", "is too large", "nested too deeply")
    return f"its line is not valid JSON{next((f' ({error})' for text in known if text in str(error)), '')}"


def _csv_rows(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header) or not all(header):
                raise ValueError(f"{path} has columns without a name, or two of one name; give each its own")
            for cells in reader:
                name = f"{path.name}:{reader.line_num}"
                if any(_undecoded(cell) for cell in cells):
                    tally.count("damaged", "its line is not text in UTF-8", name)
                elif cells and len(cells) != len(header):
                    tally.count("damaged", "its line has more or fewer cells than the header", name)
                elif cells:
                    yield {column: cell or None for column, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}, is not CSV ({error}); write it again") from error


def _undecoded(text: str) -> bool:
    return any(0xDC80 <= ord(character) <= 0xDCFF for character in text)

"""Files of separated values, line by line: the ground that the formats stand on.

Text is UTF-8 with or without a mark at its start; a file whose name ends in .gz is unpacked on the way. Columns are
found by name. A fault is a `ValueError` that names the file and the line.
"""

import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

MAX_FIELD = 1_000_000


def open_text(path: Path) -> io.TextIOBase:
    """A text file to read."""
    binary = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def first_line(path: Path) -> str:
    """The first line of a file without its end; empty for an empty file."""
    try:
        with open_text(path) as file:
            return file.readline(MAX_FIELD).rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a text file in UTF-8; give a table of separated values") from error


def fields(path: Path, separator: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not empty.

    Args:
        separator: one character, or "" for any run of white space.
        quoted: whether double quotes hold a field together, as in CSV.
    """
    try:
        with open_text(path) as file:
            if not separator:
                yield from ((k, line.split()) for k, line in enumerate(file, 1) if line.strip())
                return
            reader = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            yield from ((reader.line_num, row) for row in reader if row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8; give a table of separated values") from error
    except (csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def records(path: Path, separator: str, columns: Mapping[str, int], *, quoted: bool, skip: int) -> Iterator[list[str]]:
    """The wanted fields of every line after the first `skip`, stripped, in the order of `columns` (name -> place)."""
    places = list(columns.values())
    for number, row in fields(path, separator, quoted=quoted):
        if number <= skip:
            continue
        try:
            yield [row[place].strip() for place in places]
        except IndexError as error:
            raise ValueError(
                f"{path}, line {number}: it has {len(row)} fields, and {max(places) + 1} are needed; "
                "check that every line has the same columns"
            ) from error


def find(
    path: Path, header: Sequence[str], wanted: Mapping[str, Sequence[str]], optional: Sequence[str]
) -> dict[str, int]:
    """Where the wanted columns stand.

    Args:
        header: the names in the file.
        wanted: our name -> the names it goes by, in small letters.
        optional: which of ours may be missing.

    Raises:
        ValueError: a column that is needed is missing, or one is there twice.
    """
    lower = [name.strip().lower() for name in header]
    places = {}
    for name, aliases in wanted.items():
        found = [k for k, column in enumerate(lower) if column in aliases]
        if len(found) > 1:
            raise ValueError(f"{path} has more than one column for the {name}: {', '.join(header[k] for k in found)}")
        if found:
            places[name] = found[0]
        elif name not in optional:
            raise ValueError(
                f"{path} has no column for the {name}; it has {', '.join(header)}, and one must be called "
                f"{' or '.join(aliases)}"
            )
    return places


TIME = "a time must be a number, such as seconds since 1970"


def number(path: Path, text: str, must: str = TIME) -> float | None:
    """A finite number from a field, None where it is empty.

    Args:
        must: what the field must be, for the message.
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: {must}, not {text[:40]!r}")
    return value


def listed_words(text: str) -> tuple[str, ...]:
    """The words of a list written as text: "[12, 7]" or "['shoe', 'red']" -> its items. It is parsed, never evaluated.

    A field that is no list is split at white space.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return tuple(text.split())
    items = (item.strip() for item in text[1:-1].split(","))
    return tuple(item.strip("'\"").strip() for item in items if item.strip("'\" "))

"""Plain tables: `user item [query words] [time]`.

A file, or a folder with train, test and perhaps valid. Separated by tabs (.tsv), commas (.csv) or white space (.txt).
With a header the columns are found by name, in any order, and others are passed over; without one they are user, item,
query, time. A column `label` may mark rows with 0, which are no events. In a .txt file without a header, all that
follows user and item on a line are query words.
"""

from collections.abc import Iterator
from pathlib import Path

from unidiffuser.recommend.tables import lines
from unidiffuser.recommend.tables.rows import Row, Tally

COLUMNS = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid"),
    "query": ("query", "words", "query_words", "keyword", "keywords"),
    "time": ("time", "timestamp"),
    "label": ("label",),
}
SEPARATORS = {".tsv": "\t", ".csv": ",", ".txt": ""}
OPTIONAL = ("query", "time", "label")


def finds(path: Path) -> dict[str, Path]:
    """Part -> file of a plain table; empty if this is none."""
    if path.is_file():
        return {"": path} if _suffix(path) in SEPARATORS else {}
    if not path.is_dir():
        return {}
    return {part: file for file in sorted(path.iterdir()) if (part := _part(file)) is not None}


def rows(path: Path, tally: Tally) -> Iterator[Row]:
    """The rows of all parts."""
    for part, file in finds(path).items():
        yield from _rows(file, part, tally)


def has_header(path: Path) -> bool:
    """Whether the first line names a user and an item."""
    names = {name.lower() for name in _header(path)}
    return bool(names & set(COLUMNS["user"]) and names & set(COLUMNS["item"]))


def _header(path: Path) -> list[str]:
    """The fields of the first line."""
    first, separator = lines.first_line(path), SEPARATORS[_suffix(path)]
    return [name.strip() for name in (first.split(separator) if separator else first.split())]


def _rows(path: Path, part: str, tally: Tally) -> Iterator[Row]:
    separator, header = SEPARATORS[_suffix(path)], _header(path)
    named = {name.lower() for name in header}
    if not (named & set(COLUMNS["user"]) or named & set(COLUMNS["item"])):
        yield from _nameless(path, part, separator)
        return
    places = lines.find(path, header, COLUMNS, OPTIONAL)
    for name in (name for k, name in enumerate(header) if k not in places.values()):
        tally[f"columns passed over in {path.name}: {name}"] += 1
    for values in lines.records(path, separator, places, quoted=separator == ",", skip=1):
        row = dict(zip(places, values, strict=True))
        if row.get("label", "1") in ("0", "0.0"):
            tally["rows with label 0, dropped"] += 1
            continue
        yield Row(
            row["user"],
            row["item"],
            lines.listed_words(row.get("query", "")),
            lines.number(path, row["time"]) if "time" in row else None,
            part,
        )


def _nameless(path: Path, part: str, separator: str) -> Iterator[Row]:
    """Rows of a file without a header."""
    first = ""
    for number, row in lines.fields(path, separator, quoted=separator == ","):
        if number == 1:
            first = row[0]
        elif number == 2 and row[0].strip().isdigit() and not first.strip().isdigit():
            raise ValueError(f"{path} begins with a line that looks like a header; call its columns user, item, query")
        if len(row) < 2:
            raise ValueError(f"{path}, line {number}: a line needs a user and an item, not {' '.join(row)[:40]!r}")
        user, item, *rest = (value.strip() for value in row)
        if not separator:
            yield Row(user, item, tuple(rest), None, part)
            continue
        time = lines.number(path, rest[1]) if len(rest) > 1 else None
        yield Row(user, item, lines.listed_words(rest[0]) if rest else (), time, part)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _part(file: Path) -> str | None:
    """The part that a file of a folder holds, None if it holds none."""
    stem = Path(file.name.removesuffix(".gz")).stem.lower()
    part = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}.get(stem)
    return part if part and _suffix(file) in SEPARATORS else None

"""RecBole's atomic files: NAME.inter, or NAME.train.inter, NAME.valid.inter and NAME.test.inter.

Tabs between columns, and a header of name:type. The user and item columns are `user_id:token` and `item_id:token`; the
query is a `token_seq` column called query, its words separated by blanks; `timestamp:float` orders a user's events.
NAME.user and NAME.item files are not read: these models know ids and words only.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from unidiffuser.recommend.tables import lines
from unidiffuser.recommend.tables.rows import Row, Tally

COLUMNS = {
    "user": ("user_id", "user"),
    "item": ("item_id", "item"),
    "query": ("query", "words", "keyword", "keywords"),
    "time": ("timestamp", "time"),
}
HEADER = ("user_id:token", "item_id:token", "query:token_seq", "timestamp:float")


def finds(path: Path) -> dict[str, Path]:
    """Part -> file of atomic files; empty if these are none."""
    if path.is_file():
        return {"": path} if path.suffix == ".inter" else {}
    files = sorted(path.glob("*.inter"))
    whole = [file for file in files if file.suffixes[-2:-1] not in ([".train"], [".valid"], [".test"])]
    parts = {file.suffixes[-2][1:]: file for file in files if file not in whole}
    if len(whole) > 1 or (whole and parts) or len(parts) < len(files) - len(whole):
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds {names}; give one NAME.inter, or one set of NAME.train.inter, .valid, .test")
    return parts or ({"": whole[0]} if whole else {})


def rows(path: Path, tally: Tally) -> Iterator[Row]:
    """The rows of all parts."""
    for part, file in finds(path).items():
        header = [name.partition(":")[0] for name in lines.first_line(file).split("\t")]
        places = lines.find(file, header, COLUMNS, ("query", "time"))
        for name in (name for k, name in enumerate(header) if k not in places.values()):
            tally[f"columns passed over in {file.name}: {name}"] += 1
        for values in lines.records(file, "\t", places, quoted=False, skip=1):
            row = dict(zip(places, values, strict=True))
            time = lines.number(file, row["time"]) if "time" in row else None
            yield Row(row["user"], row["item"], tuple(row.get("query", "").split()), time, part)


def write(path: Path, events: Iterable[Row]) -> None:
    """Write rows as one atomic file; a row without a time has an empty field."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("\t".join(HEADER) + "\n")
        for row in events:
            time = "" if row.time is None else f"{row.time:.17g}"
            file.write("\t".join((row.user, row.item, " ".join(row.words), time)) + "\n")

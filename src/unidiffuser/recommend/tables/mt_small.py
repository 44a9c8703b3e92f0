"""The files of the UDITSR paper's MT-Small: train, valid and test CSV with the candidates of every ranking listed.

train has user, query, item, label; valid and test have sample_num before them. The query is a Python list written as
text and is parsed as data, never evaluated; an empty list is a recommendation. The rows of valid and test with the same
sample_num are one ranking: the one with label 1 is the event, the others are its candidates.
"""

from collections.abc import Iterator
from pathlib import Path

from unidiffuser.recommend.tables import lines
from unidiffuser.recommend.tables.rows import Row, Tally

COLUMNS = {
    "list": ("sample_num",),
    "user": ("user",),
    "query": ("query",),
    "item": ("item",),
    "label": ("label",),
}


def finds(path: Path) -> dict[str, Path]:
    """Part -> file; empty if there is no ranking list in them."""
    if not path.is_dir():
        return {}
    files = {part: path / f"{part}.csv" for part in ("train", "valid", "test")}
    files = {part: file for part, file in files.items() if file.is_file()}
    listed = [part for part, file in files.items() if "sample_num" in lines.first_line(file).lower().split(",")]
    return files if listed else {}


def rows(path: Path, tally: Tally) -> Iterator[Row]:
    """The rows of all parts."""
    for part, file in finds(path).items():
        optional = ("list",) if part == "train" else ()
        places = lines.find(file, lines.first_line(file).split(","), COLUMNS, optional)
        for values in lines.records(file, ",", places, quoted=True, skip=1):
            row = dict(zip(places, values, strict=True))
            if row["label"] not in ("0", "1", "0.0", "1.0"):
                raise ValueError(f"{file}: a label must be 0 or 1, not {row['label'][:40]!r}")
            positive = row["label"][0] == "1"
            if part == "train" and not positive:
                tally["training rows with label 0, dropped"] += 1
                continue
            list_id = row.get("list", "") if part != "train" else ""
            yield Row(row["user"], row["item"], lines.listed_words(row["query"]), None, part, list_id, positive)

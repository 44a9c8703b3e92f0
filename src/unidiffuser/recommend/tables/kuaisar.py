"""KuaiSAR's tables (Sun et al. 2023, arXiv 2306.07705): rec_inter.csv and src_inter.csv, read where they lie.

An event is a recommended video with click = 1, at `timestamp`, or a search result with click_cnt above 0, at
`search_session_timestamp` with the words of `keyword`, a list of anonymous numbers. What was shown and not clicked is
passed over, and counted. The data are CC BY-NC-SA 4.0 and are not part of this package: fetch them from their authors.
"""

from collections.abc import Iterator
from pathlib import Path

from unidiffuser.recommend.tables import lines
from unidiffuser.recommend.tables.rows import Row, Tally

RECOMMENDED = {"user": ("user_id",), "item": ("item_id",), "clicks": ("click",), "time": ("timestamp",)}
SEARCHED = {
    "user": ("user_id",),
    "item": ("item_id",),
    "clicks": ("click_cnt",),
    "time": ("search_session_timestamp",),
    "query": ("keyword",),
}
CLICKS = "the number of clicks must be a number, 0 where a row was only shown"
FILES = {"rec_inter.csv": RECOMMENDED, "src_inter.csv": SEARCHED}


def finds(path: Path) -> dict[str, Path]:
    """File name -> file; empty if one of the two is missing."""
    files = {name: path / name for name in FILES}
    return files if path.is_dir() and all(file.is_file() for file in files.values()) else {}


def rows(path: Path, tally: Tally) -> Iterator[Row]:
    """What was clicked, recommendations first."""
    for name, file in finds(path).items():
        places = lines.find(file, lines.first_line(file).split(","), FILES[name], ())
        for values in lines.records(file, ",", places, quoted=True, skip=1):
            row = dict(zip(places, values, strict=True))
            if not (lines.number(file, row["clicks"], CLICKS) or 0) > 0:
                tally["rows that were shown and not clicked, passed over"] += 1
                continue
            words = lines.listed_words(row.get("query", ""))
            if "query" in row and not words:
                tally["searches without a word, read as recommendations"] += 1
            yield Row(row["user"], row["item"], words, lines.number(file, row["time"]))

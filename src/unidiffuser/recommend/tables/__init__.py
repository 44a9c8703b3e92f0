"""Tables of events, one file of this folder a format: what a folder or file holds is told from its names and headers.

A format has `finds(path)`, the files of it (empty if there are none), and `rows(path, tally)`. Nothing that is read is
ever evaluated.
"""

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from unidiffuser.recommend.tables import kuaisar, mt_small, plain, recbole
from unidiffuser.recommend.tables.rows import PARTS, Table, collect

FORMATS: dict[str, ModuleType] = {"recbole": recbole, "mt-small": mt_small, "kuaisar": kuaisar, "plain": plain}
"""Every format by name; the first that finds its files reads them."""


def format_of(path: str | Path) -> str:
    """The format of a folder or file.

    Raises:
        ValueError: there is nothing, or nothing that a format knows.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {path}; give a file or folder with a table of events")
    for name, table_format in FORMATS.items():
        if table_format.finds(path):
            return name
    raise ValueError(
        f"{path} holds no table of events; give a .tsv, .csv or .txt file of `user item [query]`, a folder with train "
        "and test of that kind, RecBole's .inter files, MT-Small's CSV files or KuaiSAR's two tables"
    )


def is_events(path: str | Path) -> bool:
    """Whether a folder or file says of itself that it is a table of events: a name or a header that a format asks for.

    A plain table without a header does not; other data may look like it.
    """
    path = Path(path)
    found = [name for name, table_format in FORMATS.items() if path.exists() and table_format.finds(path)]
    return bool(found) and (found[0] != "plain" or all(plain.has_header(file) for file in plain.finds(path).values()))


def report(path: str | Path) -> dict[str, Any]:
    """What a table holds, as plain values: its format, the sizes, and what was met on the way.

    Raises:
        ValueError: it cannot be read.
    """
    table = read_table(path)
    found = {"users": len(table.names.users), "items": len(table.names.items), "words": len(table.names.words) - 1}
    found |= {"events": len(table.events), "searches": int(table.events.is_search.sum())}
    parts = {name: int((table.part == place).sum()) for place, name in enumerate(PARTS) if name}
    return {
        "format": format_of(path),
        **found,
        "parts": {name: count for name, count in parts.items() if count},
        "time": table.time is not None,
        "candidates": table.candidates is not None,
        "counts": dict(table.counts),
    }


def read_table(path: str | Path) -> Table:
    """Read a table of any known format; see `format_of`."""
    path, tally = Path(path), Counter[str]()
    return collect(FORMATS[format_of(path)].rows(path, tally), tally, path)


def convert(source: Path, folder: Path, *, force: bool = False) -> tuple[list[Path], dict[str, int]]:
    """Write a table of any format as RecBole's atomic files, NAME being the folder's name; given candidates are lost.

    Returns:
        The files written, and what was met.
    """
    table = read_table(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise ValueError(f"{folder} is there already; use --force to write into it, or another --out")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, part in enumerate(PARTS):
        rows = (table.part == place).nonzero()[:, 0]
        if len(rows):
            written.append(folder / ".".join(filter(None, (folder.resolve().name, part, "inter"))))
            recbole.write(written[-1], table.rows(rows))
    return written, dict(table.counts)

"""A folder of files: with a table metadata.jsonl, .csv or .parquet beside them, or with same-name .txt files.

    picture.png       {"file_name": "picture.png", "text": "a red circle"}      one row a sample
    picture.png       picture.txt: every line is a caption

A column `file_name`, or one that ends in `_file_name`, names a file relative to its table. There may be a table in each
of several folders; if one of them is train and another test or validation, the latter is left out. Where there are
tables, only what they name is used; without any, every picture and every sound is, with or without its words.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unidiffuser.datasets.faults import Tally, listed
from unidiffuser.datasets.files import PICTURES, SOUNDS, Blob, Tree, scan, training_part
from unidiffuser.datasets.rows import Columns, FileRows, Packed, find_column, refused
from unidiffuser.datasets.tables import SUFFIXES, read_table, sha256

FILE = "file_name"
TABLES = tuple(f"metadata{suffix}" for suffix in SUFFIXES)
MAX_TXT = 2**20


def tables(tree: Tree) -> list[str]:
    """The metadata tables of a folder."""
    return [name for name in tree.sizes if PurePosixPath(name).name.lower() in TABLES]


def media(tree: Tree) -> list[str]:
    """The pictures and sounds of a folder."""
    return tree.suffixed(*PICTURES, *SOUNDS)


def open_folder(root: Path, tally: Tally, table: str | None = None) -> FileRows:
    """The rows of a folder; `table` names the only table to read.

    Raises:
        ValueError: no rows, tables of several kinds, a name that leads out of the folder.
    """
    tree = scan(root)
    for name in sorted(tree.outside):
        tally.count("ignored", "it is no plain file, or a link that leads out of the folder", name)
    found = [table] if table else tables(tree)
    return _with_tables(tree, found, tally) if found else _with_texts(tree, tally)


def _with_tables(tree: Tree, found: list[str], tally: Tally) -> FileRows:
    found = _to_train_on(found, tally)
    if len(kinds := {PurePosixPath(name).suffix for name in found}) > 1:
        raise ValueError(f"{tree.root} has metadata of several kinds ({', '.join(sorted(kinds))}); keep one kind")
    rows, columns, files = Packed(), dict[str, None](), set[str]()
    named: set[str] = set()
    for name in found:
        place = str(PurePosixPath(name).parent).removeprefix(".")
        for cells in read_table(tree.root / name, tally):
            columns |= dict.fromkeys(cells)
            files |= {column for column in cells if column == FILE or column.endswith(f"_{FILE}")}
            if _resolve(cells, files, tree, place, tally):
                rows.append(cells)
                _note_again([cells[column] for column in files if cells.get(column)], named, tally)
    if len(rows) == 0 and not tally.bad():
        raise ValueError(f"{tree.root}: {listed(found)} has no rows; there is nothing to train on")
    unnamed = [name for name in media(tree) if name not in named] if files else []
    for name in unnamed:
        tally.count("ignored", "no row of the metadata names it", name)
    return FileRows(
        format="folder",
        root=tree.root,
        rows=rows,
        columns=columns,
        files=files,
        defaults=_defaults(list(columns), files, named),
        identity={name: tree.sizes[name] for name in sorted(named)} | {n: sha256(tree.root / n) for n in found},
    )


def _to_train_on(names: list[str], tally: Tally) -> list[str]:
    places = {name: name.split("/")[0] if "/" in name else "" for name in names}
    _, held_out = training_part(sorted(set(places.values())))
    for place in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", f"{place}/")
    return [name for name in names if places[name] not in held_out]


def _resolve(cells: dict[str, Any], files: set[str], tree: Tree, place: str, tally: Tally) -> bool:
    """Put the names of files relative to the root; False, counted, if one of them is not there."""
    for column in files.intersection(cells):
        if cells[column] is None or cells[column] == "":
            cells[column] = None
            continue
        name = tree.find(cells[column], place)
        if name is None:
            tally.count("damaged", "the file that its row names is not there", str(cells[column]))
            return False
        cells[column] = name
    return True


def _note_again(names: list[str], named: set[str], tally: Tally) -> None:
    for name in names:
        if name in named:
            tally.count("noted", "several rows name it; each is a sample", name)
        named.add(name)


def _defaults(columns: list[str], files: set[str], named: set[str]) -> Columns:
    """The modalities: pictures, sounds, and words under a usual name."""
    found: dict[str, str | list[str]] = {}
    suffixes = {PurePosixPath(name).suffix.lower() for name in named}
    for column in columns:
        if column in files and column != FILE:
            found[column.removesuffix(f"_{FILE}").replace("audio", "sound")] = column
    if FILE in files and suffixes & PICTURES and not suffixes & SOUNDS:
        found["image"] = FILE
    if FILE in files and suffixes & SOUNDS and not suffixes & PICTURES:
        found["sound"] = FILE
    if text := find_column("text", columns):
        found["text"] = text
    return found


def _with_texts(tree: Tree, tally: Tally) -> FileRows:
    """Pictures and sounds of one name make one sample, with the lines of the .txt file of that name."""
    names = media(tree)
    parts = {name: name.split("/")[0] if "/" in name else "" for name in names}
    _, held_out = training_part(sorted(set(parts.values())))
    for part in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", f"{part}/")
    samples: dict[str, dict[str, str]] = {}
    for name in names:
        if parts[name] not in held_out:
            column = "image" if PurePosixPath(name).suffix.lower() in PICTURES else "sound"
            if column in (sample := samples.setdefault(_stem(name), {})):
                tally.count("damaged", "another file of its kind has the same name", name)
            else:
                sample[column] = name
    texts = {_stem(name): name for name in tree.suffixed(".txt")}
    for stem in texts.keys() - samples.keys():
        tally.count("ignored", "a text without a picture or sound of its name", texts[stem])
    for name in tree.sizes:
        if (suffix := PurePosixPath(name).suffix.lower()) not in PICTURES | SOUNDS | {".txt"}:
            tally.count("ignored", f"files {suffix or 'without an ending'} are not decoded", name)
    if not samples:
        raise ValueError(f"{tree.root} holds no pictures (.png, .jpg, .webp) and no sounds (.wav); nothing to train on")
    used = {column for sample in samples.values() for column in sample}
    has_text = bool(texts.keys() & samples.keys())
    return FileRows(
        format="folder",
        root=tree.root,
        rows=Packed(_with_lines(tree, samples, texts)),
        columns=[*sorted(used), *(["text"] if has_text else [])],
        files=used,
        defaults={name: name for name in [*sorted(used), *(["text"] if has_text else [])]},
        identity={name: tree.sizes[name] for sample in samples.values() for name in sample.values()}
        | {name: sha256(tree.root / name) for stem, name in texts.items() if stem in samples},
    )


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _with_lines(tree: Tree, samples: dict[str, dict[str, str]], texts: dict[str, str]) -> Iterator[dict[str, Any]]:
    for stem, sample in samples.items():
        yield {**sample, "text": _lines(tree, texts[stem])} if stem in texts else dict(sample)


def _lines(tree: Tree, name: str) -> Any:
    """The captions of a .txt file; what is no text is left to be refused, and counted, when the sample is looked at."""
    if tree.sizes[name] > MAX_TXT:
        return refused("its text is larger than 1 MiB")
    data = Blob(tree.root / name, tree.root).read()
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return refused("its text is not in UTF-8")

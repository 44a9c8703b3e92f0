"""Which format a folder or a file is in, and its rows. One row a format; a new format is a file and a row here.

A folder that fits several formats is not guessed about: the person says which.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unidiffuser.datasets import arrays, coco, folder, parquet, webdataset
from unidiffuser.datasets.declaration import FILE
from unidiffuser.datasets.faults import Tally
from unidiffuser.datasets.files import Tree, scan
from unidiffuser.datasets.rows import Rows

Find = Callable[[Tree], list[str]]
"""The files of a folder that are in the format."""
Open = Callable[[Path, Tally, list[str] | None, Collection[str]], Rows]
"""Root, what is counted, the files to read (None for those found), the columns that will be asked for."""


@dataclass(frozen=True)
class Format:
    """How a format is found and opened."""

    find: Find
    open: Open
    what: str
    """In words."""


FORMATS: Mapping[str, Format] = {
    "folder": Format(
        lambda tree: folder.tables(tree) or folder.media(tree),
        lambda root, tally, names, _: folder.open_folder(root, tally, names[0] if names else None),
        "pictures or sounds with metadata.jsonl, .csv or .parquet, or with .txt files",
    ),
    "webdataset": Format(webdataset.shards, webdataset.open_webdataset, "tar shards as img2dataset writes them"),
    "parquet": Format(
        parquet.files, lambda root, tally, names, _: parquet.open_parquet(root, tally, names), "parquet with bytes"
    ),
    "arrays": Format(
        arrays.archives, lambda root, tally, names, _: arrays.open_arrays(root, tally, names), "arrays in a .npz"
    ),
    "coco": Format(
        coco.captions, lambda root, tally, names, _: coco.open_coco(root, tally, names), "COCO captions in JSON"
    ),
}
"""Every format by name."""

SUFFIXES = {".npz": "arrays", ".tar": "webdataset", ".jsonl": "folder", ".csv": "folder", ".json": "coco"}
"""Ending of a file that was named -> its format; a .parquet is a table or holds bytes."""


def open_rows(path: Path, format: str | None, tally: Tally, wanted: Collection[str]) -> Rows:
    """The rows of a folder or of one file.

    Raises:
        ValueError: the format is unknown or not to be told, or what is there is damaged.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    if path.is_file():
        name = format or _of_file(path)
        # the pictures of annotations/captions.json lie beside annotations/, not in it
        root = path.absolute().parents[1] if path.absolute().parent.name == coco.ANNOTATIONS else path.parent
        return FORMATS[name].open(root, tally, [str(path.absolute().relative_to(root.absolute()))], wanted)
    name = format or detect(scan(path))
    return FORMATS[name].open(path, tally, None, wanted)


def detect(tree: Tree) -> str:
    """The one format that a folder is in."""
    found = {name: files for name, format in FORMATS.items() if (files := format.find(tree))}
    found = {name: [file for file in files if file != FILE] for name, files in found.items()}
    found["parquet"] = [file for file in found.get("parquet", []) if not _beside(file, tree)]
    if "folder" in found and not folder.tables(tree) and found.get("coco"):
        del found["folder"]  # the pictures are those of the captions
    names = [name for name, files in found.items() if files]
    if len(names) > 1:
        raise ValueError(
            f"{tree.root} holds {' and '.join(FORMATS[name].what for name in names)}; "
            f'say which in {FILE}: {{"format": "{names[0]}"}}'
        )
    if not names:
        every = "; ".join(format.what for format in FORMATS.values())
        raise ValueError(f"{tree.root} holds no data that can be read: there must be {every}")
    return names[0]


def _beside(file: str, tree: Tree) -> bool:
    """Whether a parquet file is a metadata table, or belongs to a shard or a folder of its name."""
    path = PurePosixPath(file)
    stem = str(path.with_suffix(""))
    return (
        path.name.lower() in folder.TABLES
        or f"{stem}.tar" in tree.sizes
        or any(name.startswith(f"{stem}/") for name in tree.sizes)
    )


def _of_file(path: Path) -> str:
    if path.suffix.lower() == ".parquet":
        return "folder" if path.name.lower() in folder.TABLES else "parquet"
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join([*SUFFIXES, ".parquet"])
        raise ValueError(f"the file {path} is in no format that can be read ({known}); give a folder or such a file")
    return SUFFIXES[path.suffix.lower()]

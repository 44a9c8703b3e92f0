"""From what a person names to what is declared of it: a folder, a file, or a declaration, and where its sources lie."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unidiffuser.datasets import declaration
from unidiffuser.datasets.declaration import Declaration, Declared
from unidiffuser.datasets.files import local


def declared_of(path: Path) -> Declaration:
    """What is declared of a path, the sources' paths made those of this machine."""
    file = path / declaration.FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        return Declaration(sources=(Declared(path=str(path)),))
    if path.is_file() and not _is_declaration(path):
        return Declaration(sources=(Declared(path=str(path)),))
    read = declaration.read(file)
    # one that lies in a folder speaks of that folder alone; one that a person names may speak of any
    root = path.resolve() if path.is_dir() else None
    return replace(read, sources=tuple(_placed(source, file, root) for source in read.sources))


def _is_declaration(path: Path) -> bool:
    """Whether a file is a declaration, by its name or its first word; COCO captions are JSON too."""
    if path.suffix.lower() != ".json":
        return False
    with open(path, "rb") as file:
        first = re.match(rb'\s*\{\s*(?:"(\w+)"|\})', file.read(4096).removeprefix(b"\xef\xbb\xbf"))
    known = {"modalities", "sources", "budget", *declaration.SOURCE}
    return path.name == declaration.FILE or (first is not None and (first[1] or b"").decode() in known)


def _placed(source: Declared, file: Path, root: Path | None) -> Declared:
    """A source with its path from where the declaration lies."""
    if "://" in source.path or source.path.startswith("pipe:"):
        local(source.path)
    place = file.parent / source.path
    if root is not None and not place.resolve().is_relative_to(root):
        raise ValueError(
            f"{file}: the source {source.path!r} leads out of its folder; a {declaration.FILE} found in a folder "
            "speaks of that folder alone: give the declaration itself as the data to allow it"
        )
    return replace(source, path=str(local(place)))


def merged(declarations: Sequence[Declaration]) -> Declaration:
    """Several declarations as one; their modalities must agree."""
    kinds: dict[str, Mapping[str, Any]] = {}
    for each in declarations:
        for name, options in (each.modalities or {}).items():
            if kinds.setdefault(name, options) != options:
                raise ValueError(
                    f"the modality {name!r} is declared in two ways; write one declaration for all the data"
                )
    sources = tuple(source for each in declarations for source in each.sources)
    if len({source.weight is None for source in sources}) > 1:
        raise ValueError("some of the data declare weights and others do not; write one declaration for all of them")
    return Declaration(
        sources=sources,
        modalities=kinds or None,
        budget=min(each.budget for each in declarations),
        raw={"together": [dict(each.raw) for each in declarations]},
    )

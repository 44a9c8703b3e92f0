"""From a folder, or a declaration of several, to pairs that can be trained on: `open_data` is the door."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unidiffuser import modalities
from unidiffuser.datasets import declaration, encoded, formats
from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.data import Data, Opened
from unidiffuser.datasets.declaration import Declaration, Declared
from unidiffuser.datasets.faults import Tally
from unidiffuser.datasets.files import local
from unidiffuser.datasets.locating import declared_of, merged
from unidiffuser.datasets.mixing import Cases, Chained, Joined, Mixed, Part, Source
from unidiffuser.datasets.probing import derived
from unidiffuser.datasets.rows import Rows

Paths = str | Path | Sequence[str | Path]


def open_data(
    paths: Paths,
    *,
    seed: int = 0,
    budget: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    verify: bool | None = None,
    tolerant: bool = False,
) -> Data:
    """Open a folder, a file, a declaration, or several of them one after the other.

    Args:
        paths: a folder with or without data.json, a declaration, a file in a known format, or encoded data.
        seed: of the order in which sources are mixed and joined.
        budget: the share of a source's samples that may be damaged, in place of the declaration's.
        options: modality -> options that replace those of the data, such as the sample rate of a fitted codec.
        verify: of encoded data, whether all checksums are compared now; None: if they have at most 4 GiB.
        tolerant: open data that have more damage than the budget allows, to look at them.

    Raises:
        ValueError: there is nothing to be read, or the declaration does not fit what is there; one sentence.
        DataLost: more is damaged than the budget allows.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    if not named:
        raise ValueError("no data are named; give a folder")
    found = [local(path) for path in named]
    if any(encoded.is_encoded(path) for path in found):
        if len(found) > 1:
            raise ValueError("encoded data are opened alone; encode the sources together, from one declaration")
        return _open_encoded(found[0], seed, verify)
    declarations = [declared_of(path) for path in found]
    declared = declarations[0] if len(declarations) == 1 else merged(declarations)
    if budget is not None:
        declared = replace(declared, budget=budget)
    return _open_raw(declared, seed, options or {}, tolerant)


def _open_raw(declared: Declaration, seed: int, options: Mapping[str, Mapping[str, Any]], tolerant: bool) -> Data:
    tallies = [Tally(source=source.path, budget=declared.budget) for source in declared.sources]
    rows = [_open_rows(source, tally) for source, tally in zip(declared.sources, tallies, strict=True)]
    kinds = _kinds(declared, rows, options)
    cases = [
        RawCases(each, source, kinds, tally)
        for source, each, tally in zip(declared.sources, rows, tallies, strict=True)
    ]
    for each in cases:
        if not tolerant:
            each.tally.check_budget(len(each) + each.tally.bad())
    kinds = derived(kinds, cases)
    for each in cases:
        each.use_options(kinds)
    if unused := [name for name in kinds if not any(name in each.wanted for each in cases)]:
        raise ValueError(f"no source has a column for the modality {unused[0]!r}; declare one, or leave it out")
    _check_no_modality_twice(declared, cases)
    pairs, labels = _arranged(declared.sources, cases, seed)
    sources = [Opened(declared=s, rows=r, cases=c) for s, r, c in zip(declared.sources, rows, cases, strict=True)]
    return Data(pairs=pairs, kinds=kinds, labels=labels, digest=_digest(declared, rows, kinds), sources=sources)


def _open_rows(source: Declared, tally: Tally) -> Rows:
    wanted = {name for column in (source.columns or {}).values() for name in column.names} | set(source.filters)
    wanted |= {source.join.column} if source.join else set()
    rows = formats.open_rows(Path(source.path), source.format, tally, wanted)
    if not len(rows):
        cause = f" that can be used ({tally.worst()})" if tally.bad() else ""
        raise ValueError(f"{source.path} has no samples{cause}; there is nothing to train on")
    return rows


def _kinds(
    declared: Declaration, rows: Sequence[Rows], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Modality -> kind and options: those declared, else a kind of its own name for each that a source has."""
    kinds = {name: dict(each) for name, each in (declared.modalities or {}).items()}
    if declared.modalities is None:
        for source, each in zip(declared.sources, rows, strict=True):
            names = source.columns if source.columns is not None else each.defaults
            kinds |= {name: {"kind": name} for name in names if name not in kinds}
        for name in kinds:
            if name not in modalities.kinds():
                raise ValueError(
                    f"there is no kind of modality called {name!r}; say what it is in {declaration.FILE}: "
                    f'{{"modalities": {{"{name}": {{"kind": ...}}}}}}, one of {", ".join(modalities.kinds())}'
                )
    return {name: each | dict(options.get(name, {})) for name, each in kinds.items()}


def _arranged(declared: Sequence[Declared], cases: Sequence[Cases], seed: int) -> tuple[Chained | Mixed, int]:
    """Sources as one data set, and how many labels it has."""
    apart = [(source, [each]) for source, each in zip(declared, cases, strict=True) if not source.join]
    joined = [(source, each) for source, each in zip(declared, cases, strict=True) if source.join]
    groups: list[tuple[Declared, list[Cases]]] = [*apart]
    if joined:
        first = list(declared).index(joined[0][0])
        place = sum(source.join is None for source in declared[:first])
        groups.insert(place, (joined[0][0], [each for _, each in joined]))
    labels = [source.label if source.label is not None else place for place, (source, _) in enumerate(groups)]
    if gaps := sorted(set(range(max(labels) + 1)) - set(labels)):
        raise ValueError(
            f"the labels of the sources are {sorted(set(labels))}; {gaps[0]} is missing: number them from 0"
        )
    parts: list[Part] = []
    for (source, each), label in zip(groups, labels, strict=True):
        parts.append(Joined(each, seed, label) if source.join else Source(each[0], label))
    weights = [source.weight for source, _ in groups if source.weight is not None]
    if len(weights) == len(parts) > 1:
        return Mixed(parts, weights, seed), max(labels) + 1
    return Chained(parts), max(labels) + 1


def _check_no_modality_twice(declared: Declaration, cases: Sequence[RawCases]) -> None:
    seen: dict[str, str] = {}
    for source, each in zip(declared.sources, cases, strict=True):
        for name in each.wanted if source.join else ():
            if name in seen:
                raise ValueError(
                    f"{seen[name]} and {each.tally.source} are joined and both have {name!r}; "
                    "give 'columns' to each, so that one of them has it"
                )
            seen[name] = each.tally.source


def _digest(declared: Declaration, rows: Sequence[Rows], kinds: Mapping[str, Any]) -> str:
    """One sha256 for what the data are. Where they lie is no part of it."""
    said = {"declared": declared.raw, "kinds": kinds, "files": [dict(each.identity) for each in rows]}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _open_encoded(path: Path, seed: int, verify: bool | None) -> Data:
    opened = encoded.open_encoded(path, verify=verify)
    pairs, labels = _arranged(opened.declared, opened.cases, seed)
    sources = [
        Opened(declared=source, rows=None, cases=each)
        for source, each in zip(opened.declared, opened.cases, strict=True)
    ]
    return Data(
        pairs=pairs, kinds=opened.kinds, labels=labels, digest=opened.digest, sources=sources, codecs=opened.codecs
    )

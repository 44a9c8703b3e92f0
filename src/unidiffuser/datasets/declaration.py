"""A declaration: what a person says of their data, in a file data.json.

    {"modalities": {"image": {"kind": "image", "size": 64}, "text": {"kind": "text"}},
     "sources": [{"path": "web", "columns": {"image": "image", "text": "txt"}, "weight": 3,
                  "filters": {"punsafe": {"below": 0.5}, "LANGUAGE": {"in": ["en"]}}},
                 {"path": "own", "weight": 1}]}

All of it is optional but what no format can know by itself. Here it is read and checked, word by word; nothing is
opened. docs/data.md explains every word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unidiffuser import modalities, strict_json
from unidiffuser.datasets.faults import BUDGET

FILE = "data.json"
TESTS = ("min", "max", "above", "below", "in", "not_in")
MAX_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where a modality's value lies in a row."""

    names: tuple[str, ...]
    """The column, or the columns together: the numbers of a vector, the captions of a text."""
    values: Mapping[str, str] | None = None
    """Value -> the text that stands for it."""


@dataclass(frozen=True, kw_only=True)
class Join:
    """What a source is joined on."""

    column: str
    """The column that holds the key."""
    keys: Mapping[str, str] | None = None
    """Value of the column -> key; None if the value is the key."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A source, as it is declared."""

    path: str
    """Folder or file."""
    format: str | None = None
    """A row of `formats.FORMATS`; None to find out."""
    columns: Mapping[str, Column] | None = None
    """Modality -> column; None for those that the format finds."""
    weight: float | None = None
    """Its share of the samples; None everywhere to take all sources one after the other."""
    label: int | None = None
    """Its label token; None for the source's place in the list."""
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Column -> test -> bound."""
    join: Join | None = None
    """How it is joined with the other sources that say so."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All that is declared."""

    sources: tuple[Declared, ...]
    """Where the data are."""
    modalities: Mapping[str, Mapping[str, Any]] | None = None
    """Modality -> kind and the options of its `fit`; None for those that the formats find."""
    budget: float = BUDGET
    """The share of a source's samples that may be damaged."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The JSON itself."""


def read(path: Path) -> Declaration:
    """The declaration in a file.

    Raises: ValueError, in one sentence that names the file, for anything that is not as it must be.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB, too large for a declaration")
    try:
        return parse(strict_json.parse(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(value: Any) -> Declaration:
    """A declaration from JSON values; ValueError if it is not one."""
    known = _table(value, "a declaration", ["modalities", "sources", "budget", *SOURCE])
    own = {key: known[key] for key in known if key in SOURCE}
    if own and "sources" in known:
        raise ValueError(f"{next(iter(own))!r} stands beside 'sources'; put it into one of the sources")
    listed = known.get("sources", [{"path": ".", **own}])
    if not isinstance(listed, list) or not listed:
        raise ValueError("'sources' must be a list of at least one source")
    sources = tuple(_source(each, f"source {k}") for k, each in enumerate(listed))
    declared = _modalities(known["modalities"]) if "modalities" in known else None
    _check_together(sources, declared)
    budget = _number(known.get("budget", BUDGET), "'budget'")
    if not 0 <= budget <= 1:
        raise ValueError(f"'budget' is {budget}; it must be a share from 0 to 1")
    return Declaration(sources=sources, modalities=declared, budget=budget, raw=known)


SOURCE = ("path", "format", "columns", "weight", "label", "filters", "join")


def _source(value: Any, owner: str) -> Declared:
    known = _table(value, owner, SOURCE)
    label = known.get("label")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 1024):
        raise ValueError(f"the label of {owner} is {label!r}; it must be a whole number from 0 to 1023")
    weight = None if known.get("weight") is None else _number(known["weight"], f"the weight of {owner}")
    if weight is not None and not weight > 0:
        raise ValueError(f"the weight of {owner} is {weight}; it must be above 0; leave the source out instead")
    return Declared(
        path=_text(known.get("path", "."), f"the path of {owner}"),
        format=None if known.get("format") is None else _text(known["format"], f"the format of {owner}"),
        columns=None if known.get("columns") is None else _columns(known["columns"], owner),
        weight=weight,
        label=label,
        filters=_filters(known.get("filters", {}), owner),
        join=None if known.get("join") is None else _join(known["join"], owner),
    )


def _columns(value: Any, owner: str) -> dict[str, Column]:
    columns = _table(value, f"'columns' of {owner}")
    found = {}
    for modality, each in columns.items():
        _check_name(modality)
        values, names = None, each
        if isinstance(each, dict):
            parts = _table(each, f"the column of {modality!r} in {owner}", ["column", "names"])
            names = parts.get("column")
            values = None if parts.get("names") is None else _naming(parts["names"], f"'names' of {modality!r}")
        names = names if isinstance(names, list) and names else [names]
        found[modality] = Column(
            names=tuple(_text(name, f"the column of {modality!r} in {owner}") for name in names), values=values
        )
    if not found:
        raise ValueError(f"'columns' of {owner} is empty; name a column for each modality, or leave it out")
    return found


def _naming(value: Any, owner: str) -> dict[str, str]:
    """Value -> text, from a table, or from a list whose places are the values 0, 1, ..."""
    table = dict(enumerate(value)) if isinstance(value, list) else _table(value, owner)
    return {str(key): str(_plain(text, owner)) for key, text in table.items()}


def _join(value: Any, owner: str) -> Join:
    if isinstance(value, str):
        return Join(column=value)
    parts = _table(value, f"'join' of {owner}", ["column", "keys"])
    keys = None if parts.get("keys") is None else _naming(parts["keys"], f"'keys' of {owner}")
    return Join(column=_text(parts.get("column"), f"'join' of {owner}"), keys=keys)


def _filters(value: Any, owner: str) -> dict[str, dict[str, Any]]:
    found = {}
    for column, tests in _table(value, f"'filters' of {owner}").items():
        tests = _table(tests, f"the filter {column!r} of {owner}", TESTS)
        if not tests:
            raise ValueError(f"the filter {column!r} of {owner} tests nothing; use {', '.join(TESTS)}")
        for test, bound in tests.items():
            if test in ("in", "not_in"):
                if not isinstance(bound, list) or not all(isinstance(each, str | int | float) for each in bound):
                    raise ValueError(f"{test!r} of the filter {column!r} of {owner} must be a list of texts or numbers")
            else:
                _number(bound, f"{test!r} of the filter {column!r} of {owner}")
        found[column] = tests
    return found


def _modalities(value: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for name, options in _table(value, "'modalities'").items():
        _check_name(name)
        options = {"kind": name, **_table(options, f"the modality {name!r}")}
        if "sample_rate" in options:  # the samples are read with it, before any codec sees it
            modalities.check_whole(f"sample_rate of {name!r}", options["sample_rate"], 1000, 192_000)
        modalities.check_options(_text(options["kind"], f"the kind of {name!r}"), _without_kind(options))
        found[name] = options
    if not found:
        raise ValueError("'modalities' is empty; name at least one, or leave it out")
    return found


def _without_kind(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "kind"}


def _check_together(sources: tuple[Declared, ...], declared: Mapping[str, Any] | None) -> None:
    joined = [source for source in sources if source.join]
    if len(joined) == 1:
        raise ValueError("one source alone has 'join'; give it to each of those that are to be joined")
    for source in joined[1:]:
        if source.weight is not None or source.label is not None:
            raise ValueError("of the sources that are joined, only the first has a weight and a label")
    apart = [source for source in sources if not source.join] + joined[:1]
    if len({source.weight is None for source in apart}) > 1:
        raise ValueError("some sources have a weight and others do not; give one to each, or to none")
    for source in sources:
        for modality in source.columns or {}:
            if declared is not None and modality not in declared:
                raise ValueError(f"a source has a column for {modality!r}, which is not among 'modalities'")


def _check_name(name: str) -> None:
    if not modalities.NAME.fullmatch(name):
        raise ValueError(f"a modality cannot be called {name[:40]!r}; use small letters, digits and _")


def _table(value: Any, owner: str, known: Any = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{owner} must be a JSON object, not {str(value)[:40]!r}")
    if known is not None and (unknown := sorted(set(value) - set(known))):
        raise ValueError(f"{owner} has an unknown entry {unknown[0][:40]!r}; there are {', '.join(known)}")
    return value


def _text(value: Any, owner: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{owner} must be a text, not {str(value)[:40]!r}")
    return value


def _plain(value: Any, owner: str) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{owner} must hold texts or numbers, not {str(value)[:40]!r}")
    return value


def _number(value: Any, owner: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{owner} must be a number, not {str(value)[:40]!r}")
    return float(value)

"""Dotted changes to a preset: training.lr=1e-3, network.depth=12, codecs.text.width=32.

A value is read as what the field holds: a number, true or false, a word, or a JSON list.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from unidiffuser.training.preset import GIVEN, PINNED, Preset

T = TypeVar("T")
FIXED = (*GIVEN, PINNED)


def changed(preset: Preset, changes: Iterable[tuple[str, str]]) -> Preset:
    """A preset with changes.

    Raises:
        ValueError: there is no such setting, or it cannot have such a value.
    """
    for name, text in changes:
        preset = cast(Preset, _set(preset, name.split("."), text, name))
    return preset


def _set(place: Any, path: list[str], text: str, name: str) -> Any:
    """A copy of a dataclass or a table with the value at a path put in."""
    key, rest = path[0], path[1:]
    if dataclasses.is_dataclass(place) and not isinstance(place, type):
        known = [f.name for f in dataclasses.fields(place) if f.name not in FIXED]
        if key not in known:
            raise ValueError(f"there is no setting {name!r}{_guess(key, known)}; there are {', '.join(known)}")
        before = getattr(place, key)
        after = _set(before, rest, text, name) if rest else _value(text, before, name)
        return dataclasses.replace(place, **{key: after})
    if isinstance(place, Mapping):
        if rest and key not in place:
            raise ValueError(f"there is no setting {name!r}{_guess(key, place)}; there are {', '.join(place)}")
        before = place.get(key)
        return {**place, key: _set(before, rest, text, name) if rest else _value(text, before, name)}
    raise ValueError(f"the setting {name!r} does not exist: what stands before {key!r} has no parts")


def _value(text: str, before: Any, name: str) -> Any:
    """Text as a value of the same kind as the one before."""
    if isinstance(before, Mapping) or (dataclasses.is_dataclass(before) and before is not None):
        raise ValueError(f"{name} has parts; change one of them, such as {name}.{_first(before)}=...")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(before, str) and not isinstance(value, str):
        value = text
    if before is not None and type(value) is not type(before):
        raise ValueError(f"{name} is {before!r}; {text!r} is of another kind")
    return value


def _first(value: Any) -> str:
    names = list(value) if isinstance(value, Mapping) else [f.name for f in dataclasses.fields(value)]
    return names[0] if names else "..."


def _guess(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {near[0]}?)" if near else ""

"""Filters: which rows are used, by the values of their columns.

    {"punsafe": {"below": 0.5}, "WIDTH": {"min": 256}, "LANGUAGE": {"in": ["en", "de"]}}

Every test must hold: `min` and `max` with the bound itself, `above` and `below` without; `in` and `not_in` a list. A
row that has no value, or none that can be compared, fails. Numbers written as text count as numbers.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from unidiffuser.datasets.faults import listed
from unidiffuser.datasets.rows import find_column


@dataclass(frozen=True)
class Filter:
    """One test of one column."""

    column: str
    test: str
    bound: Any

    @property
    def reason(self) -> str:
        """What a row that fails is counted under."""
        return f"{self.column} fails {self.test} {self.bound}"

    def fails(self, value: Any) -> str | None:
        """Why a row with this value is left out, or None if it is not."""
        if value is None or value == "":
            return f"{self.column} is not given"
        if self.test in ("in", "not_in"):
            return (
                None if (_text(value) in {_text(each) for each in self.bound}) == (self.test == "in") else self.reason
            )
        number = as_number(value)
        if number is None:
            return f"{self.column} is no number"
        return None if _TESTS[self.test](number, self.bound) else self.reason


_TESTS: Mapping[str, Any] = {
    "min": lambda value, bound: value >= bound,
    "max": lambda value, bound: value <= bound,
    "above": lambda value, bound: value > bound,
    "below": lambda value, bound: value < bound,
}


def build(declared: Mapping[str, Mapping[str, Any]], columns: Collection[str], source: str) -> list[Filter]:
    """The filters of a source; ValueError for a column that it does not have under any of its usual names."""
    found = []
    for name, tests in declared.items():
        column = find_column(name, columns)
        if column is None:
            raise ValueError(f"{source} has no column {name!r} to filter on; it has {listed(columns, 12)}")
        found += [Filter(column, test, bound) for test, bound in tests.items()]
    return found


def as_number(value: Any) -> float | None:
    """A finite number, also one written as text; None if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """A value to be found in a list: 1, 1.0 and "1" are the same."""
    number = as_number(value)
    return str(value) if number is None else repr(number)

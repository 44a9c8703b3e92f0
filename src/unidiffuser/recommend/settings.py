"""Settings by name, as a command line or a file gives them, checked before a config is made of them.

A setting must exist and be of the kind of its default: a truth value, a whole number, a finite number or a word. What
a number may be is the config's own business. It knows no config.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def with_settings(config: Any, values: Mapping[str, Any], what: str) -> Any:
    """A frozen dataclass with some of its fields changed.

    Args:
        config: an instance, whose values say of which kind the new ones must be.
        values: field -> value.
        what: whose settings these are, in words, for the message.

    Raises:
        ValueError: an unknown field, a value of another kind, or one that the config refuses.
    """
    known = [f.name for f in dataclasses.fields(config)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{what} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    changed = dict(values)
    for name, value in values.items():
        kind = type(getattr(config, name))
        if kind is float and type(value) is int:
            changed[name] = value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{name} of {what} must be {KINDS[kind]}, not {value!r}")
    return dataclasses.replace(config, **changed)

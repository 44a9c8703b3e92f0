"""Where raw pairs come from: one file (or package) per data format.

A dataset is any object with `__len__` and `__getitem__(i) -> {modality name: raw value}`, in any order. It knows
nothing of tensors, codecs or training.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Pairs(Protocol):
    """A data set with random access: `pairs[i]` is modality -> raw value; a missing modality is absent."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

"""What a data set is to whoever trains on it."""

from collections.abc import Mapping
from typing import Any, Protocol


class Pairs(Protocol):
    """A data set with random access: `pairs[i]` is modality -> raw value, the same whenever it is asked for.

    A modality that a sample lacks is absent from its mapping. Of encoded data the keys are the names of streams and the
    values their tensors, without the batch.
    """

    def __len__(self) -> int:
        """How many samples an epoch has. Samples of several captions count once for each turn they take."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A sample; IndexError beyond the length, DataLost when the data cannot be read any more."""

    def label_of(self, index: int) -> int:
        """The label token of the source that a sample comes from; 0 where there is one source."""

"""Vector: D numbers (measurements, an embedding, an action) <-> the same numbers, standardised.

x0_d = (v_d - mean_d) / std_d with the mean and standard deviation of each number over the user's data. A number that
never varies there is only shifted (std_d = 1). The stream is a sequence of one token, (1, D).
It knows neither units nor that some numbers are whole.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from unidiffuser.modalities import Modality, expect_keys, expect_shape

MAX_BYTES = 2**22
CONSTANT = 1e-6

Numbers = np.ndarray[Any, np.dtype[np.float32]]


class Vector(Modality[Numbers]):
    """D numbers, each with the mean and standard deviation of the user's data taken out."""

    kind: ClassVar[str] = "vector"
    media_type: ClassVar[str] = "vector"
    suffix: ClassVar[str] = ".json"

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (D,) float32."""
        self.mean = mean
        self.std = std

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """One token (1, D)."""
        return {"": (1, len(self.mean))}

    def check(self, raw: Any) -> Numbers:
        """D finite numbers, float32, from an array or a list; ValueError if they are not, or not D."""
        vector = numbers(raw)
        if len(vector) != len(self.mean):
            raise ValueError(f"a vector has {len(vector)} numbers; this model takes {len(self.mean)}")
        return vector

    def encode(self, raws: Sequence[Numbers]) -> dict[str, Tensor]:
        """B vectors -> {"": (B, 1, D)}."""
        rows = torch.tensor(np.array([self.check(raw) for raw in raws], np.float32).reshape(-1, 1, len(self.mean)))
        return {"": (rows - self.mean) / self.std}

    def decode(self, streams: Mapping[str, Tensor]) -> list[Numbers]:
        """{"": (B, 1, D)} -> B vectors."""
        rows = streams[""].detach().float().cpu()
        expect_shape("the latent of a vector", rows, (-1, *self.streams[""]))
        return list((rows * self.std + self.mean)[:, 0].numpy())

    def read(self, path: str | Path) -> Numbers:
        """The vector in a JSON file that holds a list of D numbers."""
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"the file {path} is larger than {MAX_BYTES >> 20} MiB, too large for a vector")
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the file {path} is not JSON; write a list of numbers such as [1.5, 2]") from error
        return self.check(values)

    def write(self, raw: Numbers, path: str | Path) -> None:
        """Write a JSON list with the digits that give the same float32 numbers back."""
        text = ", ".join(np.format_float_scientific(value, unique=True, trim="-") for value in self.check(raw))
        Path(path).write_text(f"[{text}]\n", encoding="utf-8")

    def config(self) -> dict[str, Any]:
        """Nothing: all is in the state."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Mean and standard deviation (D,)."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec with this mean and standard deviation."""
        expect_keys("config of a vector modality", config, [])
        expect_keys("state of a vector modality", state, ["mean", "std"])
        expect_shape("the saved mean of a vector modality", state["mean"], (-1,))
        expect_shape("the saved std of a vector modality", state["std"], tuple(state["mean"].shape))
        if not bool((state["std"] > 0).all()):
            raise ValueError("the saved std of a vector modality must be positive; it is damaged")
        return cls(state["mean"].float(), state["std"].float())

    @classmethod
    def fit(cls, raws: Iterable[Any], /) -> Self:
        """Measure mean and standard deviation; no options."""
        rows = [numbers(raw) for raw in raws]
        if not rows:
            raise ValueError("there are no vectors to learn a vector modality from; give at least one")
        if len({len(row) for row in rows}) > 1:
            shortest, longest = min(map(len, rows)), max(map(len, rows))
            raise ValueError(f"the vectors have from {shortest} to {longest} numbers; all must have as many")
        table = np.stack(rows).astype(np.float64)
        mean, std = table.mean(0), table.std(0)
        std[std <= CONSTANT * np.abs(table).max(0)] = 1.0
        return cls(torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32))


def numbers(raw: Any) -> Numbers:
    """A list or array of numbers as a float32 array (D,); ValueError if it is empty, nested or not finite."""
    if not isinstance(raw, np.ndarray | list | tuple):
        raise ValueError(f"a vector must be an array or a list of numbers, not {type(raw).__name__}")
    if not isinstance(raw, np.ndarray):
        wrong = [value for value in raw if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong:
            raise ValueError(f"a vector must hold numbers only, but it holds a {type(wrong[0]).__name__}")
    try:
        array = np.asarray(raw)
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            vector = array.astype(np.float32) if array.dtype.kind in "iuf" else None
    except OverflowError:
        vector = None
    if vector is None or vector.ndim != 1 or not vector.size:
        raise ValueError("a vector must be one row of at least one real number of ordinary size")
    if not np.isfinite(vector).all():
        raise ValueError("a vector holds NaN, infinity or a number too large for float32; remove it")
    return vector

"""Vector: the arithmetic of standardising, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from unidiffuser.modalities.vector import Vector

ROWS = [[1.0, 5.0, 1e8], [3.0, 5.0, 3e8]]


def test_standardised_by_hand_and_a_constant_is_only_shifted() -> None:
    codec = Vector.fit(ROWS)
    assert codec.encode([[1.0, 5.0, 1e8], [2.0, 6.0, 2e8]])[""].tolist() == [[[-1, 0, -1]], [[0, 1, 0]]]  # type: ignore[list-item]
    (back,) = codec.decode({"": codec.encode([[7.0, -2.0, 0.0]])[""]})  # type: ignore[list-item]
    assert back.tolist() == [7.0, -2.0, 0.0]
    assert back.dtype == np.float32


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, 2], "2 numbers; this model takes 3"),
        ([1, 2, float("nan")], "NaN"),
        ([1, 2, 1e39], "float32"),
        ([1, 2, 10**400], "ordinary size"),
        ([1, 2, True], "bool"),
        ([1, 2, "3"], "str"),
        ([[1, 2, 3]], "list"),
        (np.zeros((1, 3)), "one row"),
        (np.array([1, 2, 3j]), "real number"),
        ([], "at least one"),
        ("123", "str"),
        (5, "int"),
    ],
)
def test_refused(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vector.fit(ROWS).check(raw)


@pytest.mark.parametrize(
    "text", ["[1, 2, NaN]", "[1, 2, 1e400]", "{", "[" * 10**5, "[1, 2, " + "9" * 5000 + "]", '{"a": 1}', "", "\xff"]
)
def test_bad_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"vector|JSON"):
        Vector.fit(ROWS).read(path)


def test_files_keep_every_bit(tmp_path: Path) -> None:
    numbers = (np.random.default_rng(0).normal(size=80) * 10.0 ** np.arange(-42, 38)).astype(np.float32)
    codec = Vector.fit([numbers])
    codec.write(numbers, tmp_path / "v.json")
    assert np.array_equal(codec.read(tmp_path / "v.json"), numbers)


def test_fit_refuses() -> None:
    with pytest.raises(ValueError, match="no vectors"):
        Vector.fit([])
    with pytest.raises(ValueError, match="from 1 to 2 numbers"):
        Vector.fit([[1], [1, 2]])

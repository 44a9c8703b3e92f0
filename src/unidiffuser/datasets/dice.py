"""A counter-based source of random choices that gives the same values on every machine and for ever.

The i-th word of a key k is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"):

    word_i = mix(k + i * 0x9E3779B97F4A7C15 mod 2^64)

with mix the paper's 64-bit finaliser. Whole numbers only, no NumPy stream whose version could change under a dataset.
It does not know what is drawn with it.
"""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    """The 64-bit finaliser: a bijection of 64-bit words in which every input bit moves every output bit."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Dice:
    """Random choices keyed by whole numbers: equal keys roll equal values, other keys independent ones."""

    __slots__ = ("_state",)

    def __init__(self, *key: int) -> None:
        state = 0
        for part in key:
            state = _mix((state + _STEP) ^ _mix(part & _MASK))
        self._state = state

    def word(self) -> int:
        """The next word, uniform on 0 .. 2^64 - 1."""
        self._state = (self._state + _STEP) & _MASK
        return _mix(self._state)

    def below(self, n: int) -> int:
        """Uniform on 0 .. n - 1 (bias below n / 2^64)."""
        return (self.word() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """Uniform on the whole numbers low .. high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return (self.word() >> 11) * 2.0**-53 < p

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def weigh(self, options: Sequence[tuple[_T, float]]) -> _T:
        """One of the (value, probability) options; the probabilities sum to 1."""
        u = (self.word() >> 11) * 2.0**-53
        for value, p in options:
            if u < p:
                return value
            u -= p
        return options[-1][0]

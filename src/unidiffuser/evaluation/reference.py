"""The true pairs that a model is compared with: whole ones, drawn at random, those that its codecs refuse left out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from unidiffuser import modalities
from unidiffuser.datasets import DataLost
from unidiffuser.datasets.pairs import Pairs
from unidiffuser.datasets.scenes import Scenes
from unidiffuser.joint import generator
from unidiffuser.pipeline import UniDiffuser

LEAST = 8
"""So many whole pairs are needed."""
MOST_OTHERS = 2000
"""So many pairs beside those that are asked about are read, to train classifiers on."""

Pair = Mapping[str, Any]


class Truth(Protocol):
    """Where true pairs come from: open data (`datasets.Data`), or a world."""

    @property
    def pairs(self) -> Pairs:
        """The pairs."""

    @property
    def kinds(self) -> Mapping[str, Mapping[str, Any]]:
        """Modality -> {"kind": a file of modalities/, ...}."""

    @property
    def codecs(self) -> Mapping[str, Any] | None:
        """Those of encoded data, else None."""

    @property
    def samples(self) -> int:
        """How many of the pairs are different."""

    @property
    def digest(self) -> str:
        """A hash of what they are."""

    def repeats(self, index: int) -> bool:
        """Whether the pair of this index shows what another one shows; asked again after it was read."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The scenes as true pairs: those of the test set, which no training sees."""

    seed: int = 0
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {m: {"kind": m} for m in ("image", "text")})
    codecs: None = None

    @property
    def pairs(self) -> Scenes:
        """See `Truth`."""
        return Scenes(seed=self.seed, split="test")

    @property
    def samples(self) -> int:
        """See `Truth`."""
        return len(self.pairs)

    @property
    def digest(self) -> str:
        """See `Truth`."""
        return hashlib.sha256(repr(self.pairs).encode()).hexdigest()

    def repeats(self, index: int) -> bool:
        """See `Truth`."""
        return False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """True pairs, none of them twice."""

    names: tuple[str, ...]
    """The modalities that both the model and the data have, in the model's order."""
    asked: list[Pair]
    """What samples are compared with and made from."""
    others: list[Pair]
    """As many, or more: how far true pairs are from true pairs, and what classifiers learn from."""
    passed_over: dict[str, int]
    """Why a pair was not used -> how often."""


def gather(model: UniDiffuser, data: Truth, samples: int, seed: int) -> Reference:
    """Draw true pairs.

    Args:
        samples: so many are asked about; half of the whole pairs if the data have fewer than twice as many.

    Raises:
        ValueError: the data do not fit the model, or have fewer than `LEAST` whole pairs that its codecs take.
    """
    names = _shared(model, data)
    rows = min(len(data.pairs), data.samples)
    order = torch.randperm(rows, generator=generator(seed, "evaluate/pairs")).tolist()
    whole: list[Pair] = []
    passed: dict[str, int] = {}
    for row in (row for row in order if not data.repeats(row)):
        if len(whole) == samples + max(samples, MOST_OTHERS):
            break
        try:
            pair = data.pairs[row]
            if not data.repeats(row):  # a damaged one, which is known only now, has given its place to another
                whole.append({name: model.modalities[name].check(pair[name]) for name in names})
        except KeyError as error:
            reason = f"it has no {error.args[0]}"
            passed[reason] = passed.get(reason, 0) + 1
        except DataLost:
            raise
        except ValueError as error:
            passed[str(error)] = passed.get(str(error), 0) + 1
    if len(whole) < LEAST:
        often = max(passed, key=lambda reason: passed[reason], default="")
        why = f", and of the others most often: {often}" if often else ""
        raise ValueError(
            f"only {len(whole)} of {rows} pairs have {' and '.join(names)} as this model takes them{why}; "
            f"at least {LEAST} are needed"
        )
    asked = min(samples, len(whole) // 2)
    return Reference(names=names, asked=whole[:asked], others=whole[asked:], passed_over=_most(passed))


def _shared(model: UniDiffuser, data: Truth) -> tuple[str, ...]:
    if data.codecs is not None:
        raise ValueError("these are encoded data, which have no pictures and no words; give those that they come from")
    names = tuple(name for name in model.modalities if name in data.kinds)
    if not names:
        raise ValueError(
            f"the data have {', '.join(data.kinds)} and the model has {', '.join(model.modalities)}; "
            "name the columns of the data in data.json as the model names its modalities"
        )
    for name in names:
        found, wanted = modalities.find(data.kinds[name]["kind"]).media_type, model.modalities[name].media_type
        if found != wanted:
            raise ValueError(f"{name!r} is a kind of {found} in the data and a kind of {wanted} in the model")
    return names


def _most(passed: Mapping[str, int]) -> dict[str, int]:
    """The ten most frequent reasons."""
    return dict(sorted(passed.items(), key=lambda item: -item[1])[:10])

"""One evaluation: a model, true pairs, and the samples that its measures share, each distribution drawn once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from unidiffuser.evaluation.features import Features
from unidiffuser.evaluation.reference import Pair, Reference
from unidiffuser.joint import Joint, generator
from unidiffuser.pipeline import UniDiffuser

BATCH = 64
CLIP = "openai/clip-vit-base-patch32"

Progress = Callable[[str, int, int], None]
"""Called with what is drawn, the samples done and the samples to do; it may raise to cancel."""

Rows = Iterator[tuple[str, dict[str, Any]]]
"""What a measure yields: the name of a row and the row, which says under "what" what it is."""


class NotMeasured(ValueError):
    """Why a measure does not apply to these data; the report says so and goes on."""


@dataclass
class Trial:
    """What measures are told, and the samples they have asked for so far."""

    model: UniDiffuser
    reference: Reference
    samples: int
    seed: int
    settings: Mapping[str, Any]
    features: Features
    progress: Progress | None = None
    clip: str | Path = CLIP
    """The CLIP that scores pictures against texts: a folder, or its name on the hub."""
    download: bool = False
    """Whether it may be fetched."""
    drawn: dict[tuple[str, tuple[str, ...]], list[Any]] = field(default_factory=dict)

    def draw(self, of: str, given: tuple[str, ...] = ()) -> list[Any]:
        """`samples` values of one modality, sample k given those of true pair k (in turns, if there are fewer)."""
        key = (of, given)
        if key not in self.drawn:
            values: list[Any] = []
            for start in range(0, self.samples, BATCH):
                rows = range(start, min(start + BATCH, self.samples))
                options: dict[str, Any] = dict(self.settings)
                options |= {name: [self.pair(k)[name] for k in rows] for name in given}
                seeds = [self.seed_of(f"{of} given {' '.join(given)}", k) for k in rows]
                drawn = self.model.sample(of, n=len(rows), seed=seeds, batch=BATCH, **options)
                values += [sample[of] for sample in drawn]
                self.tell(of + (f" given {' and '.join(given)}" if given else ""), rows.stop, self.samples)
            self.drawn[key] = values
        return self.drawn[key]

    def givens(self, of: str) -> list[tuple[str, ...]]:
        """What a modality can be sampled given: every set of others, the small ones first, never the empty one."""
        others = [name for name in self.reference.names if name != of]
        return [given for size in range(1, len(others) + 1) for given in combinations(others, size)]

    def pair(self, k: int) -> Pair:
        """The true pair that sample k is made from."""
        return self.reference.asked[k % len(self.reference.asked)]

    def vectors(self, name: str, values: list[Any]) -> "np.ndarray[Any, Any]":
        """Values of a modality as vectors (N, D)."""
        return self.features.of(self.model.modalities[name], values)

    def streams(self, pairs: list[Pair]) -> Joint:
        """The streams of true pairs, where the model works."""
        values = {name: [pair[name] for pair in pairs] for name in self.reference.names}
        return {s: x.to(self.model.device) for s, x in self.model.encode(**values).items()}

    def seed_of(self, purpose: str, k: int) -> int:
        """The seed of sample k for a purpose: a function of the evaluation's seed and these alone."""
        return generator(self.seed, "evaluate", purpose, k).initial_seed()

    def tell(self, what: str, done: int, total: int) -> None:
        """Tell the progress."""
        if self.progress is not None:
            self.progress(what, done, total)

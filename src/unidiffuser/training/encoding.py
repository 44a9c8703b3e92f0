"""Raw pairs -> latents, in a loader process; and what cannot be used is told, never skipped in silence.

A value that cannot be read, or that its codec refuses, is missing from its pair: its stream is noise at t = 1 and takes
no part in the loss, and the other modalities of the pair still train. `Refusals` counts them in the main process, names
the first few, and stops the run when there are too many.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidiffuser.codecs import Codecs
from unidiffuser.datasets import DataLost, Pairs
from unidiffuser.joint import Joint, streams_of
from unidiffuser.modalities import Modality
from unidiffuser.training import TrainingError
from unidiffuser.training.batches import Batch

log = logging.getLogger(__name__)

LABEL, REFUSED, LOST = "#label", "#refused", "#lost"  # no modality can be called so

NAMED = 5
"""So many refused values are named in the log, the others only counted."""


@dataclass(frozen=True)
class Reading:
    """Pairs with the label of their source, and with a sentence in the place of what cannot be read."""

    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            return {**self.pairs[index], LABEL: self.pairs.label_of(index)}
        except DataLost as error:
            return {LABEL: 0, LOST: str(error)}
        except (ValueError, OSError) as error:
            return {LABEL: 0, REFUSED: f"sample {index}: {error}"}


@dataclass(frozen=True)
class Encoding:
    """The codecs of a run as a function: the raw pairs of a batch -> a `Batch`."""

    modalities: Mapping[str, Modality[Any]]
    autocast: bool
    """Whether codecs that are networks compute in bfloat16."""

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> Batch:
        shapes = Codecs(self.modalities).shapes
        refused = [pair[REFUSED] for pair in pairs if REFUSED in pair]
        lost = next((pair[LOST] for pair in pairs if LOST in pair), "")
        x0: Joint = {}
        present: dict[str, Tensor] = {}
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            for name, codec in self.modalities.items():
                streams = streams_of(name, shapes)
                rows, made = _streams(codec, name, streams, pairs, refused)
                present[name] = torch.zeros(len(pairs), dtype=torch.bool)
                present[name][rows] = True
                for stream in streams:
                    x0[stream] = torch.zeros(len(pairs), *shapes[stream])
                    if rows:
                        x0[stream][rows] = made[stream].float()
        label = torch.tensor([pair.get(LABEL, 0) for pair in pairs])
        return Batch(x0=x0, present=present, label=label, refused=tuple(refused), lost=lost)


def _streams(
    codec: Modality[Any], name: str, streams: Sequence[str], pairs: Sequence[Mapping[str, Any]], refused: list[str]
) -> tuple[list[int], Joint]:
    """Which pairs have a modality that can be used, and its streams; of encoded data these are there already."""
    ready = [k for k, pair in enumerate(pairs) if all(isinstance(pair.get(s), Tensor) for s in streams)]
    if ready:
        return ready, {s: torch.stack([pairs[k][s] for k in ready]) for s in streams}
    good: dict[int, Any] = {}
    for k, pair in enumerate(pairs):
        if pair.get(name) is None:
            continue
        try:
            good[k] = codec.check(pair[name])
        except ValueError as error:
            refused.append(f"a value of {name!r}: {error}")
    if not good:
        return [], {}
    made = codec.encode_together(list(good.values()))
    return list(good), {stream: made[stream.partition(".")[2]] for stream in streams}


@dataclass
class Refusals:
    """How much of the data could not be used since this process began."""

    budget: float = 0.02
    """The share of refused values at which a run stops."""
    least: int = 200
    """So many samples are seen before the share is judged."""
    seen: int = 0
    refused: int = 0
    last: str = ""

    def add(self, batch: Batch) -> None:
        """Count a batch.

        Raises:
            DataLost: the data cannot be read any more.
            TrainingError: more than the budget was refused.
        """
        if batch.lost:
            raise DataLost(batch.lost)
        self.seen += len(batch.label)
        for sentence in batch.refused:
            self.refused, self.last = self.refused + 1, sentence
            if self.refused <= NAMED:
                log.warning("left out: %s%s", sentence, " (others are only counted)" if self.refused == NAMED else "")
        if self.seen >= self.least and self.refused > self.budget * self.seen:
            raise TrainingError(
                f"{self.refused} values among {self.seen} samples could not be used, the last: {self.last}; "
                "see `unidiffuser data check` and mend the data"
            )

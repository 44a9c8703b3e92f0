"""The report: every measure that applies, as one JSON-able table of rows; and its lines for a person."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from unidiffuser.evaluation.bits import bits
from unidiffuser.evaluation.classes import classes
from unidiffuser.evaluation.clip import clip_score
from unidiffuser.evaluation.features import extractor
from unidiffuser.evaluation.likeness import likeness
from unidiffuser.evaluation.numbers import shown, told
from unidiffuser.evaluation.pairing import agreement, denoising
from unidiffuser.evaluation.paths import paths
from unidiffuser.evaluation.reference import Truth, gather
from unidiffuser.evaluation.trial import CLIP, NotMeasured, Progress, Rows, Trial
from unidiffuser.evaluation.wording import wording
from unidiffuser.pipeline import MAX_SAMPLES, UniDiffuser

LEAST_SAMPLES = 8

MEASURES: Mapping[str, Callable[[Trial], Rows]] = {
    "likeness": likeness,
    "classes": classes,
    "wording": wording,
    "clip": clip_score,
    "agreement": agreement,
    "paths": paths,
    "likelihood": bits,
    "denoising": denoising,
}
"""Every measure by name; a new one is a file with a generator of rows, and a row here."""


def evaluate_data(
    model: UniDiffuser, data: Truth, samples: int = 200, *, only: Collection[str] | None = None, **options: Any
) -> dict[str, Any]:
    """Measure a model against true pairs of the modalities that it shares with the data.

    Args:
        only: some of `MEASURES`; all if absent.
        options: see `prepare`.

    Returns:
        {"samples", "seed", "settings", "features", "pairs", "rows": {name: {"what", "numbers", ...}}, "left_out"}.
    """
    return measure(prepare(model, data, samples, **options), only)


def prepare(
    model: UniDiffuser,
    data: Truth,
    samples: int = 200,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    features: str | None = None,
    inception: str | Path | None = None,
    clip: str | Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Trial:
    """Check everything and draw the true pairs.

    Args:
        samples: of every distribution, 8 to 10,000.
        seed: fixes pairs and noise; the same seed gives the same numbers on one machine.
        settings: how to sample, as `model.choose` takes it (steps, solver, ...); the model's own where absent.
        features, inception: see `features.extractor`.
        clip: the CLIP of the CLIP score, a folder or a name on the hub; absent: ViT-B/32, if it is in the local cache.
        download: whether it may be fetched.
        progress: told what is drawn.

    Raises:
        ValueError: a number out of range, unknown features, data that do not fit the model or are too few.
    """
    limits = {"samples": (samples, LEAST_SAMPLES, MAX_SAMPLES), "seed": (seed, 0, 2**32 - 1)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, not {value}")
    chosen = dict(settings or {})
    model.choose(**chosen)
    vectors = extractor(features, inception)
    reference = gather(model, data, samples, seed)
    return Trial(model, reference, samples, seed, chosen, vectors, progress, clip or CLIP, download)


def measure(trial: Trial, only: Collection[str] | None = None) -> dict[str, Any]:
    """Carry out some measures or, if none is named, all of them.

    Raises:
        ValueError: an unknown measure, or one that was named and does not apply.
    """
    for name in only or ():
        if name not in MEASURES:
            raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
    rows: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in only or MEASURES:
        try:
            rows |= dict(MEASURES[name](trial))
        except NotMeasured as error:
            if only:
                raise
            left_out[name] = str(error)
    reference = trial.reference
    return {
        "samples": trial.samples,
        "seed": trial.seed,
        "settings": told(trial.settings),
        "features": trial.features.name,
        "modalities": list(reference.names),
        "pairs": {
            "asked": len(reference.asked),
            "others": len(reference.others),
            "passed_over": reference.passed_over,
        },
        "rows": rows,
        "left_out": left_out,
    }


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report for a person."""
    pairs = report["pairs"]
    yield f"{report['samples']} samples of each distribution, {pairs['asked']} true pairs, seed {report['seed']}"
    for name, row in report["rows"].items():
        numbers = "; ".join(shown(title, number) for title, number in row["numbers"].items())
        yield f"{name} [{row['features']}]: {numbers}" if "features" in row else f"{name}: {numbers}"
    for name, why in report["left_out"].items():
        yield f"{name} was not measured: {why}"

"""How true a model of the scenes is: every promise of its model card, measured against the world it was trained on.

Sentences are read back by the grammar, pictures by the oracle, so every sample has facts, and facts agree or do not.

    picture given sentence   every fact that a sentence of the test set states holds in the sampled picture
    sentence given picture   every fact that the sampled sentence states holds in the true picture
    joint                    sampled together, picture and sentence agree
    facts                    how often each size, colour, ... occurs in unconditional samples, against its probability:
                             the total variation of the worst kind of fact

A rate comes with n and a 95 % interval, and beside it stands what the oracle makes of true pictures of the same
captions: no model can be measured to be better than that. A distance comes with its floor, the distance of n true
scenes. Sentences and pictures that cannot be read are wrong, never skipped.

This file knows the scenes and what a loaded model offers; it knows no network, solver or codec. Times aside, the same
seed gives the same numbers.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from unidiffuser.agreement import use_of_others
from unidiffuser.answers import Sample
from unidiffuser.datasets.scenes import Scenes, facts, frequencies, grammar, oracle
from unidiffuser.datasets.scenes.facts import Scene
from unidiffuser.evaluation.numbers import told
from unidiffuser.metrics import proportion, total_variation
from unidiffuser.pipeline import UniDiffuser

MAX_SAMPLES = 10_000
USE_SAMPLES = 256  # enough for two digits of the denoising errors
TIMED_PICTURES = 5

PROMISES: Mapping[str, tuple[str, float | None, float | None]] = {
    "image_given_text": ("picture agrees with all facts of its caption, seen combinations", 0.95, 0.995),
    "image_given_text_heldout": ("the same, held-out combinations", 0.85, 0.98),
    "text_given_image": ("caption agrees with all facts of its picture, seen combinations", 0.95, 0.995),
    "text_given_image_heldout": ("the same, held-out combinations", None, None),
    "joint": ("joint sample: caption and picture agree", 0.90, 0.99),
    "grammar": ("sampled sentences that the grammar accepts", 0.97, 0.999),
    "grammar_text_given_image": ("of these, given a picture", None, None),
    "grammar_text": ("of these, text alone", None, None),
    "grammar_joint": ("of these, together with a picture", None, None),
    "facts_image": ("distance of fact frequencies from the truth, pictures alone", 0.06, 0.02),
    "facts_text": ("the same, sentences alone", 0.06, 0.02),
    "facts_joint_image": ("the same, pictures of joint samples", 0.06, 0.02),
    "facts_joint_text": ("the same, sentences of joint samples", 0.06, 0.02),
    "autoencoder": ("true picture agrees with all its facts after encoding and decoding", None, None),
    "seconds": ("seconds for one guided picture", 2.0, 0.3),
}
"""Row -> (what it measures, the bound it must keep, the aim)."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a row, the samples done and the samples to do; it may raise to cancel."""


def evaluate_scenes(
    model: UniDiffuser,
    samples: int = 1000,
    *,
    seed: int = 0,
    batch: int = 50,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every row of `PROMISES` on `samples` samples each, and how much each modality uses the other.

    Args:
        model: a model of pictures and sentences, named "image" and "text".
        samples: samples a row, 8 to 10,000.
        seed: fixes the captions and the noise; 0 to 2**32 - 1.
        batch: samples in memory at a time; it changes no number.
        settings: options for every call of `model.sample`, such as steps and guidance; the model's own where absent.
        progress: told what is done.

    Returns:
        {"samples", "seed", "settings", "rows": {name: row}, "uses": `agreement.use_of_others`}; `markdown` shows it.
        A row holds "what", perhaps "bound" and "aim", and one of "rate" (with "low", "high", "n"; where facts are
        compared also "wrong", how often which fact failed; for pictures also "oracle", the same of true ones),
        "distance" (with "floor", "n", and both for each kind of fact), and "seconds".

    Raises:
        ValueError: a number out of range, or a model without pictures and sentences.
    """
    limits = {"samples": (samples, 8, MAX_SAMPLES), "seed": (seed, 0, 2**32 - 1), "batch": (batch, 1, MAX_SAMPLES)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, not {value}")
    missing = {"image", "text"} - set(model.modalities)
    if missing:
        raise ValueError(
            f"scenes are pictures and sentences, but this model has no modality {' and no '.join(missing)}"
        )
    run = _Run(model, samples, seed, batch, dict(settings or {}), progress)
    rows = _conditional_rows(run, "test", "") | _conditional_rows(run, "heldout", "_heldout")
    rows |= _joint_rows(run) | _marginal_rows(run) | _autoencoder_row(run) | _time_row(run)
    rows["grammar"] = _pooled([rows[f"grammar_{how}"] for how in ("text_given_image", "text", "joint")])
    promised: dict[str, Any] = {}
    for name, (what, bound, aim) in PROMISES.items():
        promised[name] = {"what": what, **({} if bound is None else {"bound": bound, "aim": aim}), **rows[name]}
    return {"samples": samples, "seed": seed, "settings": told(run.settings), "rows": promised, "uses": _uses(run)}


@dataclass(frozen=True)
class _Run:
    """One evaluation: the model, how many samples, and the keys of their randomness."""

    model: UniDiffuser
    samples: int
    seed: int
    batch: int
    settings: dict[str, Any]
    progress: Progress | None

    def chunks(self, row: str) -> Iterator[range]:
        """The sample numbers 0 .. samples - 1 in batches, telling the progress."""
        for start in range(0, self.samples, self.batch):
            yield range(start, min(start + self.batch, self.samples))
            if self.progress is not None:
                self.progress(row, min(start + self.batch, self.samples), self.samples)

    def sample(self, row: str, chunk: range, *names: str, **given: Any) -> list[Sample]:
        """The samples of a chunk; every row has seeds of its own."""
        first = (self.seed * len(PROMISES) + list(PROMISES).index(row)) * MAX_SAMPLES
        return self.model.sample(*names, n=len(chunk), seed=first + chunk.start, **self.settings, **given)

    def truth(self, split: str) -> Scenes:
        """The true scenes that are asked about."""
        return Scenes(seed=self.seed, split=split)


@dataclass
class _Tally:
    """How many pairs of facts agree, and what was wrong with the others."""

    n: int = 0
    hits: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def add(self, said: Scene | None, seen: Scene | None) -> None:
        """Count one pair; None is a sentence or a picture that could not be read."""
        self.n += 1
        if said is None or seen is None:
            self.wrong["unreadable sentence" if said is None else "unreadable picture"] += 1
            return
        failed = {fact.split()[0] for fact, holds in facts.agreement(said, seen).items() if not holds}
        self.hits += not failed
        self.wrong.update(failed)

    def row(self) -> dict[str, Any]:
        return {**dict(proportion(self.hits, self.n)), "wrong": dict(sorted(self.wrong.items()))}


def _conditional_rows(run: _Run, split: str, suffix: str) -> dict[str, Any]:
    """Each modality given the other, on the captions and pictures of one split."""
    truth, sentences = run.truth(split), _Tally()
    pictures, true_pictures = _Tally(), _Tally()
    read: list[Scene | None] = []
    for chunk in run.chunks("image_given_text" + suffix):
        pixels, captions = truth.batch(chunk)
        sampled = run.sample("image_given_text" + suffix, chunk, "image", text=captions)
        for caption, picture, sample in zip(captions, pixels, sampled, strict=True):
            pictures.add(_said(caption), oracle.read(sample["image"]).scene)
            true_pictures.add(_said(caption), oracle.read(picture).scene)
    for chunk in run.chunks("text_given_image" + suffix):
        given = [Image.fromarray(picture) for picture in truth.batch(chunk)[0]]
        for i, sample in zip(chunk, run.sample("text_given_image" + suffix, chunk, "text", image=given), strict=True):
            read.append(_said(sample["text"]))
            sentences.add(read[-1], truth.facts(i))
    return {
        "image_given_text" + suffix: pictures.row() | {"oracle": true_pictures.row()},
        "text_given_image" + suffix: sentences.row(),
        "grammar_text_given_image" + suffix: _accepted(read),
    }


def _joint_rows(run: _Run) -> dict[str, Any]:
    """Pictures and sentences sampled together, and the law of each."""
    truth, pairs, true_pairs = run.truth("test"), _Tally(), _Tally()
    pictures: list[Scene | None] = []
    sentences: list[Scene | None] = []
    for chunk in run.chunks("joint"):
        for sample in run.sample("joint", chunk, "image", "text"):
            pictures.append(oracle.read(sample["image"]).scene)
            sentences.append(_said(sample["text"]))
            pairs.add(sentences[-1], pictures[-1])
        for picture, caption in zip(*truth.batch(chunk), strict=True):
            true_pairs.add(_said(caption), oracle.read(picture).scene)
    return {
        "joint": pairs.row() | {"oracle": true_pairs.row()},
        "grammar_joint": _accepted(sentences),
        "facts_joint_image": _distance(run, pictures, said=False),
        "facts_joint_text": _distance(run, sentences, said=True),
    }


def _marginal_rows(run: _Run) -> dict[str, Any]:
    """Pictures alone and sentences alone."""
    pictures: list[Scene | None] = []
    sentences: list[Scene | None] = []
    for chunk in run.chunks("facts_image"):
        pictures += [oracle.read(sample["image"]).scene for sample in run.sample("facts_image", chunk, "image")]
    for chunk in run.chunks("facts_text"):
        sentences += [_said(sample["text"]) for sample in run.sample("facts_text", chunk, "text")]
    return {
        "facts_image": _distance(run, pictures, said=False),
        "facts_text": _distance(run, sentences, said=True),
        "grammar_text": _accepted(sentences),
    }


def _autoencoder_row(run: _Run) -> dict[str, Any]:
    """True pictures through the picture codec and back: the ceiling of every sampled picture."""
    tally, truth = _Tally(), run.truth("test")
    for chunk in run.chunks("autoencoder"):
        joint = run.model.encode(image=[Image.fromarray(picture) for picture in truth.batch(chunk)[0]])
        for i, picture in zip(chunk, run.model.decode(joint)["image"], strict=True):
            tally.add(truth.facts(i), oracle.read(picture).scene)
    return {"autoencoder": tally.row()}


def _time_row(run: _Run) -> dict[str, Any]:
    """The median wall time of one picture given a sentence, after one for warming up."""
    _, captions = run.truth("test").batch(range(TIMED_PICTURES + 1))
    times = []
    for k, caption in enumerate(captions):
        start = time.perf_counter()
        run.sample("seconds", range(k, k + 1), "image", text=caption)
        times.append(time.perf_counter() - start)
    measured = {"seconds": statistics.median(times[1:]), "n": TIMED_PICTURES, "threads": torch.get_num_threads()}
    return {"seconds": measured}


def _uses(run: _Run) -> dict[str, dict[str, Any]]:
    """The denoising errors with the other modality given, ignored and swapped."""
    chunk = range(min(run.samples, USE_SAMPLES))
    pixels, captions = run.truth("test").batch(chunk)
    joint = run.model.encode(image=[Image.fromarray(picture) for picture in pixels], text=captions)
    joint = {stream: x.to(run.model.device) for stream, x in joint.items()}
    return use_of_others(run.model.posterior, run.model.process, joint, list(chunk))


def _said(sentence: str) -> Scene | None:
    """The facts of a sentence, None if the grammar does not accept it."""
    try:
        return grammar.read(sentence)
    except ValueError:
        return None


def _accepted(sentences: Sequence[Scene | None]) -> dict[str, float]:
    return dict(proportion(sum(scene is not None for scene in sentences), len(sentences)))


def _pooled(rates: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """One rate of several."""
    counts = [(round(rate["rate"] * rate["n"]), int(rate["n"])) for rate in rates]
    return dict(proportion(sum(hits for hits, _ in counts), sum(n for _, n in counts)))


def _distance(run: _Run, scenes: Sequence[Scene | None], said: bool) -> dict[str, Any]:
    """The distance of facts from their law, its floor (n true scenes), and both for each kind of fact."""
    truth, law = run.truth("test"), frequencies.law(said)
    true = [_said(str(truth[i]["text"])) if said else truth.facts(i) for i in range(len(scenes))]
    kinds, floors = (dict(total_variation(frequencies.count(each), law)) for each in (scenes, true))
    distance, floor = kinds.pop("worst"), floors.pop("worst")
    return {"distance": distance, "floor": floor, "n": len(scenes), "kinds": kinds, "floors": floors}


def markdown(report: Mapping[str, Any]) -> str:
    """The report of `evaluate_scenes` as the tables of a model card."""
    lines = [
        f"Measured on {report['samples']} samples a row, seed {report['seed']}; in brackets the 95 % interval.",
        "Truth: what the oracle makes of true pictures of the same captions, or the distance of as many true scenes.",
        "",
        "| what | measured | truth | bound | aim |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in report["rows"].values()]
    lines += ["", "| squared error of the clean estimate | other given | ignored | swapped |", "|---|---|---|---|"]
    for modality, use in report["uses"].items():
        lines.append(f"| {modality} | {use['given']:.3f} | {use['ignored']:.3f} | {use['swapped']:.3f} |")
    return "\n".join(lines) + "\n"


def _misses(row: Mapping[str, Any]) -> bool:
    """Whether a row breaks its bound, if it has one: a rate from below, a distance or a time from above."""
    if "bound" not in row:
        return False
    if "rate" in row:
        return bool(row["rate"] < row["bound"])
    return bool(row["distance" if "distance" in row else "seconds"] > row["bound"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    bounds = [row[name] for name in ("bound", "aim") if name in row]
    if "rate" in row:
        measured = f"{100 * row['rate']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        truth = f"{100 * row['oracle']['rate']:.1f} %" if "oracle" in row else ""
        shown = [f"{100 * bound:g} %" for bound in bounds]
    else:
        measured = f"{row['distance']:.3f}" if "distance" in row else f"{row['seconds']:.2f} s"
        truth = f"{row['floor']:.3f}" if "floor" in row else ""
        shown = [f"{bound:g}" for bound in bounds]
    if _misses(row):
        shown[0] += ", missed"
    return [row["what"], measured, truth, *(shown or ["", ""])]

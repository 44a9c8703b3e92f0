"""Path consistency: whether a model's joint law is one law, whichever way it is drawn.

    p(a, b) = p(a) p(b | a) = p(b) p(a | b)

Both at once, a first and then b, b first and then a: of exact denoisers the three samples have one law, and a test of
two samples with the product of a kernel on a and a kernel on b must not tell them apart. A small p says that they
differ; how much, says the discrepancy. All is unguided, since guidance moves the law of every path in its own way.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from unidiffuser.chains import Draw, Link, follow, sampler
from unidiffuser.distances import gaussian_gram, two_sample
from unidiffuser.evaluation.numbers import Number, statistic
from unidiffuser.evaluation.trial import BATCH, NotMeasured, Rows, Trial
from unidiffuser.joint import Joint, cat_joints, streams_of

SHARE, LEAST, MOST = 3, 16, 256
"""A path gets a third of the samples, within these: the five draws of the three paths then cost as much as two rows."""

Settle = Callable[[Joint], Joint]
"""Streams as they are sampled -> as they are given on: a value of its codec."""


def paths(trial: Trial) -> Rows:
    """Three tests for every two modalities of the data."""
    names, model = trial.reference.names, trial.model
    if len(names) < 2:
        raise NotMeasured("paths need two modalities")
    chosen = {name: x for name, x in trial.settings.items() if name in ("steps", "solver")}
    own = model.choose(**chosen)
    options: dict[str, Any] = {
        "solver": own.solver,
        "steps": own.steps,
        "grid": own.grid,
        "begin": own.begin,
        "end": own.end,
        "fresh_noise": own.fresh_noise,
        "device": model.device,
    }

    def draw(sampled: tuple[str, ...], given: Joint, seeds: list[int]) -> Joint:
        # A denoiser of its own for every run of the solver: one that reuses outputs remembers them.
        return sampler(model.denoiser, model.process, model.shapes, **options)(sampled, given, seeds)

    count = min(max(trial.samples // SHARE, LEAST), MOST)
    for a, b in combinations(names, 2):
        seeds = [trial.seed_of(f"paths {a} {b}", k) for k in range(3 * count)]

        def tell(done: int, what: str = f"paths of {a} and {b}") -> None:
            trial.tell(what, done, 3 * count)

        for title, numbers in consistency(draw, a, b, seeds, lambda joint: _settled(trial, joint), tell):
            what = f"{a} and {b} drawn {title}: the squared discrepancy of the two, and how likely it is by chance"
            yield f"{a} and {b}: {title}", {"what": what, "numbers": {"discrepancy": numbers}, "n": count}


def consistency(
    draw: Draw,
    a: str,
    b: str,
    seeds: Sequence[int],
    settle: Settle = lambda joint: joint,
    tell: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[str, Number]]:
    """Draw two modalities in three ways and compare each two of them.

    Args:
        draw: unguided draws, see `chains.sampler`.
        seeds: three for each sample: every path has its own, for the tests want independent samples.

    Yields:
        ("at once against a first", {"value", "error", "p"}), and so on.
    """
    ways = {
        "at once": [Link((a, b), ())],
        f"{a} first": [Link((a,), ()), Link((b,), (a,))],
        f"{b} first": [Link((b,), ()), Link((a,), (b,))],
    }
    count = len(seeds) // len(ways)
    found: dict[str, Joint] = {}
    for k, (title, links) in enumerate(ways.items()):
        parts = []
        for start in range(0, count, BATCH):
            chosen = list(seeds[k * count : (k + 1) * count][start : start + BATCH])
            with torch.inference_mode():
                *_, joint = follow(lambda *asked: settle(draw(*asked)), {}, links, chosen)
            parts.append({s: joint[s].cpu() for m in (a, b) for s in streams_of(m, joint)})
            tell(k * count + start + len(chosen))
        found[title] = cat_joints(parts)
    for first, second in combinations(ways, 2):
        both = cat_joints([found[first], found[second]])
        gram = np.prod([_gram(both, name) for name in (a, b)], axis=0)
        yield f"{first} against {second}", statistic(two_sample(gram, count))


def _gram(joint: Joint, name: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return gaussian_gram(torch.cat([joint[s].flatten(1) for s in streams_of(name, joint)], 1).double().numpy())


def _settled(trial: Trial, joint: Joint) -> Joint:
    """Each sample as it is once it was a value, as `sample` would give it on; latents that are none stay."""
    result = {stream: x.clone() for stream, x in joint.items()}
    for name, codec in trial.model.modalities.items():
        streams = streams_of(name, joint)
        for row in range(len(joint[streams[0]]) if streams and not codec.lossy else 0):
            one = {s: joint[s][row : row + 1] for s in streams}
            try:
                again = trial.model.encode(**{name: trial.model.decode(one)[name]})
            except ValueError:
                continue  # such as a sentence without words
            for s in streams:
                result[s][row] = again[s][0]
    return result

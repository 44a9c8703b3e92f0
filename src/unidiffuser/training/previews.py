"""Samples of a run in progress, of every distribution: pictures, sentences, sounds, whatever the codecs write.

    RUN/previews/given/K.NAME.SUFFIX            what is given in them: values of the first whole pairs of the data
    RUN/previews/step-00001000/image-given-text/K.SUFFIX

They are made from a checkpoint by another process (`unidiffuser preview RUN`), which computes beside the training on
one core and at the lowest priority: no step waits for it, and it shares no random stream with anything.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from unidiffuser.datasets import Pairs
from unidiffuser.modalities import Modality
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.training import snapshot
from unidiffuser.training.preset import Preset

log = logging.getLogger(__name__)

EXAMPLES = 4
LOOKED_AT = 64
"""Among so many first pairs, whole ones are looked for."""


def watching(run: Path, preset: Preset, modalities: Mapping[str, Modality[Any]]) -> Callable[[int], None] | None:
    """What to tell of every checkpoint that was written; it starts previews of those whose turn it is."""
    write_given(run / "previews" / "given", preset.pairs, modalities)
    if not preset.preview_every:
        return None
    running: list[subprocess.Popen[bytes]] = []
    last = [0]

    def saved(step: int) -> None:
        if step // preset.preview_every == last[0] // preset.preview_every:
            return
        if running and running[-1].poll() is None:
            log.warning("the previews before step %d are still being made; this step gets none", step)
            return
        last[0] = step
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "unidiffuser", "preview", str(run), "--quiet"]
        try:
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, preexec_fn=_stand_back)
            )
        except OSError as error:
            log.warning("no previews of step %d: %s", step, error)

    return saved


def make(run: Path, *, n: int = EXAMPLES) -> Path:
    """Sample every distribution of the newest checkpoint of a run, n samples each. Returns their folder.

    Raises:
        ValueError: the run has no checkpoint yet.
    """
    step, model = snapshot.load(run)
    place = run / "previews" / f"step-{step:08d}"
    write(model, place, read_given(run / "previews" / "given", model, n), n)
    return place


def write(model: UniDiffuser, place: Path, given: Mapping[str, list[Any]], n: int) -> None:
    """Write n samples of every distribution into a folder; given: modality -> n values."""
    for sampled, known in distributions(model.modalities):
        values: dict[str, Any] = {name: given[name] for name in known if name in given}
        if len(values) < len(known):
            continue  # the data has no whole pair among its first
        title = "-".join(sampled) + (f"-given-{'-'.join(known)}" if known else "")
        folder = place / title
        folder.mkdir(parents=True, exist_ok=True)
        samples = model.sample(*sampled, n=n, seed=0, **values)
        for name in sampled:
            codec = model.modalities[name]
            for k, sample in enumerate(samples):
                codec.write(sample[name], folder / f"{k}.{name}{codec.suffix}")


def distributions(names: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(sampled, given) of all 3^M - 2^M distributions of M modalities, marginals first."""
    for known in _subsets(tuple(names)):
        rest = tuple(name for name in names if name not in known)
        yield from ((sampled, known) for sampled in _subsets(rest) if sampled)


def _subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def write_given(folder: Path, pairs: Pairs, modalities: Mapping[str, Modality[Any]]) -> None:
    """Write the values of the first whole pairs, once: all of them or none."""
    if folder.is_dir():
        return
    aside = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for count, values in enumerate(_whole_pairs(pairs, modalities)):
        for name, codec in modalities.items():
            codec.write(values[name], aside / f"{count}.{name}{codec.suffix}")
    os.rename(aside, folder)


def _whole_pairs(pairs: Pairs, modalities: Mapping[str, Modality[Any]]) -> Iterator[dict[str, Any]]:
    """The checked values of the first few pairs that have every modality."""
    found = 0
    for i in range(min(LOOKED_AT, len(pairs))):
        try:
            pair = pairs[i]
            values = {name: codec.check(pair[name]) for name, codec in modalities.items()}
        except (KeyError, ValueError, OSError):
            continue
        yield values
        found += 1
        if found == EXAMPLES:
            return


def read_given(folder: Path, model: UniDiffuser, n: int) -> dict[str, list[Any]]:
    """Modality -> n values; the files repeat if there are fewer."""
    given = {}
    for name, codec in model.modalities.items():
        files = sorted(folder.glob(f"*.{name}{codec.suffix}")) if folder.is_dir() else []
        if files:
            given[name] = [codec.read(files[k % len(files)]) for k in range(n)]
    return given


def _stand_back() -> None:
    os.nice(19)

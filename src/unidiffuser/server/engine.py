"""The engine: jobs as plain values, carried out on models that share their forwards.

A job is a `JobBody`. It is first *checked*: its values are read by the codecs and it is rehearsed up to the first
evaluation of the network, which refuses everything that a real run would refuse, at the cost of no forward. Then it is
*run* in a thread of its own; its Denoiser is a share of the lanes (`batching`), and what happens on the way is told
through a callback. The engine knows no process, no queue and no HTTP.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unidiffuser.checkpoints import Settings
from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import Joint, seeds_from
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.sampling import GRIDS
from unidiffuser.server import dropped, wire
from unidiffuser.server.asked import cost, decided, evaluations, read_all, read_mask, size_of, sized_for
from unidiffuser.server.batching import Lanes, StoppedError
from unidiffuser.server.schemas import JobBody
from unidiffuser.server.truth import speaks_scenes
from unidiffuser.server.verbs import Bench, Emit, run
from unidiffuser.solvers import SOLVERS

MAX_WORDS_SHOWN = 300
ASK_POSTERIOR = ("interpolate", "score")
"""Verbs that ask for means, where a student's network answers with samples; they are counted in evaluations."""


class _RehearsedError(Exception):
    """All that comes before the first evaluation went well."""


class Engine:
    """Models that carry out jobs."""

    def __init__(
        self,
        models: Mapping[str, UniDiffuser],
        *,
        library: str = "",
        lanes: int = 1,
        rows: int = 16,
        seen: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            models: by the names that jobs know them by, the default first.
            library: the version that recipes name.
            lanes, rows, seen: see `batching.Lanes`.
        """
        self.models, self.library = dict(models), library
        self.scenes = {name for name, model in models.items() if speaks_scenes(model.modalities)}
        self.lanes = Lanes(lanes=lanes, rows=rows, seen=seen)
        self._asked: dict[tuple[str, bool, int], Denoiser] = {}

    def close(self) -> None:
        """Stop all lanes; jobs that run end with `StoppedError`."""
        self.lanes.close()

    def describe(self) -> list[dict[str, Any]]:
        """Every model as JSON: what a client must know to ask."""
        return [_described(name, model, name in self.scenes) for name, model in self.models.items()]

    def check(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The job with everything decided and every value as its codec has it, and its cost in rows of the network.

        Raises:
            ValueError: what the model refuses.
        """
        job = JobBody(**body)
        name = job.model or next(iter(self.models))
        if name not in self.models:
            raise ValueError(f"there is no model {name!r} here; there are {', '.join(self.models)}")
        model = self.models[name]
        sized = sized_for(model, job.size)
        values = {part: read_all(sized, getattr(job, part)) for part in ("given", "second")}
        masks = {m: read_mask(m, url) for m, url in job.masks.items()}
        plain = job.plain | {
            "model": name,
            "seed": seeds_from(job.seed, job.n)[0],
            **{part: {m: wire.write(sized.codecs[m], raw) for m, raw in raws.items()} for part, raws in values.items()},
            "masks": {m: wire.picture(mask) for m, mask in masks.items()},
        }
        plain |= decided(model, plain)
        asked = partial(self._denoiser, name, job.verb)

        def rehearse(settings: Settings) -> Denoiser:
            asked(settings)  # raises what is wrong with them
            return _rehearse

        with suppress(_RehearsedError):
            run(Bench(model=model.through(rehearse), emit=_silent, library=self.library), plain)
        return plain, cost(model, plain)

    def read(self, image: str) -> dict[str, Any]:
        """What a dropped picture says of how it was made; see `dropped`. Raises ValueError if it is no picture."""
        return dropped.read(image, {model.digest: name for name, model in self.models.items() if model.digest})

    def run(self, plain: Mapping[str, Any], emit: Emit, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Carry out a checked job.

        Raises:
            StoppedError: `stopped` said so.
            ValueError: as `UniDiffuser` does, for what only shows on the way.
        """
        started = time.monotonic()
        asked = 0

        def before() -> None:
            nonlocal asked
            if stopped():
                raise StoppedError
            asked += 1
            if plain["verb"] in ASK_POSTERIOR:
                emit({"event": "step", "done": asked, "total": max(asked, evaluations(plain))})

        name = plain["model"]

        def shared(settings: Settings) -> Denoiser:
            return self.lanes.shared(self._denoiser(name, plain["verb"], settings), before)

        with self.lanes.joined():
            model = self.models[name].through(shared)
            bench = Bench(model=model, emit=emit, library=self.library, scenes=name in self.scenes)
            result = run(bench, plain)
        return result | {"seconds": round(time.monotonic() - started, 3)}

    def _denoiser(self, name: str, verb: str, settings: Settings) -> Denoiser:
        """Whom a job asks: one and the same Denoiser for all that may share a forward. With reuse it remembers what it
        was asked before, so every run has its own.

        Raises:
            ValueError: a network that cannot reuse its blocks.
        """
        model = self.models[name]
        critic = verb in ASK_POSTERIOR and model.critic_part is not None
        if settings.reuse and verb not in ASK_POSTERIOR:
            return model.denoiser_for(settings)
        made = model.posterior_for(settings) if critic else model.denoiser_for(replace(settings, reuse=None))
        return self._asked.setdefault((name, critic, settings.label), made)


def _rehearse(xt: Joint, t: dict[str, Tensor]) -> Joint:
    raise _RehearsedError


def _silent(event: Mapping[str, Any]) -> None:
    """Tells nobody."""


def _described(name: str, model: UniDiffuser, scenes: bool) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": model.digest,
        "modalities": [
            {
                "name": m,
                "media_type": codec.media_type,
                "suffix": codec.suffix,
                "shapes": {s: list(shape) for s, shape in codec.streams.items()},
                "words": _words(codec),
                "size": size_of(codec),
                "multiple": getattr(codec, "multiple", None),
            }
            for m, codec in model.modalities.items()
        ],
        "labels": model.labels,
        "settings": asdict(model.settings),
        "solvers": {row: {"evaluations": s.evaluations, "stochastic": s.stochastic} for row, s in SOLVERS.items()},
        "grids": list(GRIDS),
        "card": model.card[:20_000],
        "scenes": scenes,
    }


def _words(codec: Any) -> list[str] | None:
    """The words of a text modality that knows only so many."""
    words = [word.strip() for word in getattr(codec, "vocabulary", [])]
    return sorted(filter(None, words)) if 0 < len(words) <= MAX_WORDS_SHOWN else None


def on_one_thread() -> None:
    """Every product on one thread: then a row is the same in any batch, and the lanes are what runs side by side."""
    torch.set_num_threads(1)

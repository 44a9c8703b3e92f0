"""What a job does on a model: one function a verb, one table.

A job is plain values (`JobBody.plain`, checked). What happens on the way is told through a callback as events:

    step       done, total, timesteps       after every step
    preview    step, samples                what the samples look like by now, not too often
    link       sample                       a link of a chain is drawn

It knows no threads, no process and no HTTP.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unidiffuser.answers import Glimpse, Sample
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.request import Request
from unidiffuser.server import wire
from unidiffuser.server.asked import SCORE_BATCH, read_all, request_of
from unidiffuser.server.truth import truth

Emit = Callable[[dict[str, Any]], None]
"""Tells what happens: {"event": name, ...}."""

BATCH = 16
"""Samples of one job that are drawn at a time."""
SHOWN = 4
"""Samples of a job that previews show."""
PREVIEW_EVERY, PREVIEW_SHARE = 0.1, 0.25
"""Seconds between previews, and the share of a job's time that they may take."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a job is carried out."""

    model: UniDiffuser
    """Its denoiser may be shared."""
    emit: Emit
    """Is told what happens."""
    library: str
    """The version that recipes name."""
    scenes: bool = False
    """Whether the truth of a sample can be told."""


def run(bench: Bench, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a checked job."""
    return VERBS[plain["verb"]](bench, plain)


def _sample(bench: Bench, plain: Mapping[str, Any]) -> dict[str, Any]:
    model, emit = bench.model, bench.emit
    asked = request_of(model, plain)
    watch = _Previews(model, emit, plain).show if plain["previews"] or plain["partials"] else None

    def told(glimpse: Glimpse) -> None:
        done = glimpse.rows.start // BATCH * glimpse.steps + glimpse.step
        total = -(-asked.n // BATCH) * glimpse.steps
        emit({"event": "step", "done": done, "total": total, "timesteps": dict(glimpse.timesteps)})
        if watch:
            watch(glimpse)

    samples = asked.draw(model, watch=told)
    return _answer(model, asked, [_told(bench, one, asked, asked.names) for one in samples])


def _chain(bench: Bench, plain: Mapping[str, Any]) -> dict[str, Any]:
    model, emit = bench.model, bench.emit
    asked = request_of(model, plain)
    first = int(asked.names[0] in asked.given)
    rows: list[dict[str, Any]] = []

    def progress(done: int, total: int) -> None:
        emit({"event": "step", "done": done, "total": total})

    def landed(link: int, samples: list[Sample]) -> None:
        name = asked.names[link + first]
        for k, one in enumerate(samples):
            made = asked.link(model, link + first, one)
            row = {"chain": k, "link": link + first, "shows": name, **_told(bench, one, made, (name,))}
            rows.append(row)
            if k < SHOWN:
                emit({"event": "link", "sample": row})

    asked.draw_chain(model, progress, landed)
    return _answer(model, asked, rows)


def _interpolate(bench: Bench, plain: Mapping[str, Any]) -> dict[str, Any]:
    model = bench.model
    first, second = (read_all(model, plain[end]) for end in ("given", "second"))
    frames = model.interpolate(
        first, second, *plain["names"], frames=plain["frames"], seed=plain["seed"], steps=plain["steps"]
    )
    rows = [{"frame": k, **_told(bench, one, None, ())} for k, one in enumerate(frames)]
    return {"samples": rows, "model_sha256": model.digest}


def _score(bench: Bench, plain: Mapping[str, Any]) -> dict[str, Any]:
    model = bench.model
    given = read_all(model, plain["given"])
    if len(given) != 2:
        raise ValueError(f"a score is between two given modalities, and {len(given)} are given; give two of them")
    pictures = [name for name in given if model.modalities[name].media_type == "image"]
    of = plain["of"] or (pictures or list(given))[0]
    about = next((name for name in given if name != of), of)
    (found,) = model.score(of, about, samples=plain["draws"], seed=plain["seed"], batch=SCORE_BATCH, **given)
    maps = {stream: bits.round(4).tolist() for stream, bits in found.maps.items()}
    answer = {"of": of, "about": about, "bits": found.bits, "error": found.error, "maps": maps}
    return answer | {"samples": [], "model_sha256": model.digest} | ({"truth": truth(given)} if bench.scenes else {})


VERBS: dict[str, Callable[[Bench, Mapping[str, Any]], dict[str, Any]]] = {
    "sample": _sample,
    "chain": _chain,
    "interpolate": _interpolate,
    "score": _score,
}
"""What can be asked for, by name."""


class _Previews:
    """Clean estimates as events: at the steps that were asked for, and all the way but not too often."""

    def __init__(self, model: UniDiffuser, emit: Emit, plain: Mapping[str, Any]) -> None:
        self._codecs, self._emit, self._next = model.modalities, emit, 0.0
        self._flowing, self._parts = plain["previews"], plain["partials"] + 1

    def _due(self, step: int, steps: int) -> bool:
        """Whether a part of the way ends with this step."""
        return step * self._parts // steps > (step - 1) * self._parts // steps

    def show(self, glimpse: Glimpse) -> None:
        """Decode and tell, unless it is not time, or these are not the first samples, or the last step is done."""
        started = time.monotonic()
        if glimpse.rows.start or glimpse.step == glimpse.steps:
            return
        if not self._due(glimpse.step, glimpse.steps) and (not self._flowing or started < self._next):
            return
        values = glimpse.values(SHOWN)
        samples = [
            {name: wire.write(self._codecs[name], raws[k]) for name, raws in values.items()}
            for k in range(min(SHOWN, len(glimpse.rows)))
        ]
        self._emit({"event": "preview", "step": glimpse.step, "samples": samples})
        took = time.monotonic() - started
        self._next = started + max(PREVIEW_EVERY, took / PREVIEW_SHARE)


def _told(bench: Bench, one: Sample, asked: Request | None, names: tuple[str, ...]) -> dict[str, Any]:
    """A sample as JSON; pictures that were sampled carry their recipe."""
    recipe = asked.recipe(bench.model, one, bench.library) if asked else None
    values = {
        name: wire.write(bench.model.modalities[name], raw, recipe if name in names else None)
        for name, raw in one.values.items()
    }
    told: dict[str, Any] = {"seed": one.seed, "values": values}
    if recipe:
        told["pixels"] = recipe.pixels
    return told | ({"truth": truth(one.values)} if bench.scenes else {})


def _answer(model: UniDiffuser, asked: Request, samples: list[dict[str, Any]]) -> dict[str, Any]:
    settings = model.choose(asked.steps, asked.solver, asked.guidance)
    return {
        "samples": samples,
        "model_sha256": model.digest,
        "settings": {"steps": settings.steps, "solver": settings.solver, "guidance": asdict(settings.guidance)},
    }

"""Training: the loop over optimiser steps, for a joint model and for the autoencoder of a picture codec.

    fit(loss_of, model, settings, folder)      the loop: learning rate, averaging, checkpoints, exact resume
    train(preset, folder)                      codecs first, then the network, then a saved model

Nothing random is kept between steps: the data and the noise of step k are functions of (seed, k) alone, so a run that was stopped and one that
went straight through see the same numbers. The loop knows nothing of modalities or losses: it is handed a function of the step.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unidiffuser.checkpoints import Settings
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.joint import Joint, generator
from unidiffuser.losses import Objective, denoising_loss
from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.text import Text
from unidiffuser.networks import Network, build
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.process import PROCESSES, Prediction

log = logging.getLogger(__name__)

STATISTICS = 20
"""The autoencoder's latents are standardised over the pictures of its last so many steps."""

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite gradient stop a run."""


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How a model is optimised."""

    steps: int
    """Optimiser steps in all."""
    batch: int
    """Samples a step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon for the weight matrices of the hidden layers; 0: AdamW for these too."""
    warmup: int = 200
    """Steps of linear warm-up."""
    cooldown: float = 0.2
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moments."""
    ema: float = 0.9995
    """Decay a step of the averaged weights, which are the ones that are kept; shorter while the run is young."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    autocast: bool = True
    """Matrix products in bfloat16."""
    save_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of the weights, the data order, the timesteps and the noise."""


class Pairs(Protocol):
    """A data set with random access: `pairs[i]` is modality -> raw value."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run, from data to a saved model of pictures and sentences."""

    name: str
    """What the model is called."""
    pairs: Pairs
    """The data: modality -> raw value."""
    fitted_on: int
    """How many samples the codecs' statistics and the tokenizer are taken from."""
    text: Mapping[str, Any]
    """Options of `modalities.text.Text.fit`."""
    autoencoder: AutoEncoderConfig
    """The picture codec's autoencoder."""
    autoencoder_training: OptimiserSettings
    """How it is optimised."""
    network: Mapping[str, Any]
    """The network's description, as `networks.build` takes it, without the streams."""
    process: str
    """The noising process, a row of `process.PROCESSES`."""
    prediction: Prediction
    """What the network puts out."""
    space: Prediction
    """Where its error is measured."""
    ends: float
    """The share of timesteps exactly at 0, and at 1; see `timesteps.draw_timesteps`."""
    training: OptimiserSettings
    """How the network is optimised."""
    settings: Settings
    """How the finished model is sampled unless the user says otherwise."""


def train(
    recipe: Recipe, run: Path, progress: Callable[[str, int, int, Mapping[str, float]], None] | None = None
) -> UniDiffuser:
    """Carry out a recipe, going on from what the run folder holds, and save the model as RUN/final.

    Args:
        recipe: the run.
        run: RUN/autoencoder and RUN/network hold the checkpoints and metrics.jsonl of the two stages.
        progress: called with (stage, step, steps, figures).

    Returns:
        The trained model.

    Raises:
        ValueError: the folder belongs to a run with other settings.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    _claim(run, recipe)
    torch.manual_seed(recipe.training.seed)
    stage = partial(_stage, progress)
    autoencoder = _trained_autoencoder(recipe, run, stage("autoencoder", recipe.autoencoder_training))
    modalities = _codecs(recipe, autoencoder)
    streams = {name: codec.streams[""] for name, codec in modalities.items()}
    network = build({**recipe.network, "streams": streams})
    settings = recipe.training
    batches = Batches(recipe.pairs, settings.batch, settings.seed, partial(_encode, modalities))
    process = PROCESSES[recipe.process]()
    objective = Objective(process=process, prediction=recipe.prediction, space=recipe.space, ends=recipe.ends)
    follow = stage("network", settings)
    fit_network(
        network, partial(batches.from_step, steps=settings.steps), objective, settings, run / "network", progress=follow
    )
    described = _describe(recipe)
    model = UniDiffuser(
        network,
        recipe.process,
        recipe.prediction,
        modalities,
        settings=recipe.settings,
        name=recipe.name,
        training=described,
    )
    model.save(run / "final", force=True)
    return model


def _trained_autoencoder(
    recipe: Recipe, run: Path, progress: Callable[[int, Mapping[str, float]], None] | None
) -> AutoEncoder:
    settings = recipe.autoencoder_training
    batches = Batches(recipe.pairs, settings.batch, settings.seed, _pixels)
    pictures = partial(batches.from_step, steps=settings.steps)
    return fit_autoencoder(AutoEncoder(recipe.autoencoder), pictures, settings, run / "autoencoder", progress=progress)


def _codecs(recipe: Recipe, autoencoder: AutoEncoder) -> dict[str, Modality[Any]]:
    """The picture and the text codec, fitted on the first samples."""
    first = [recipe.pairs[i] for i in range(min(recipe.fitted_on, len(recipe.pairs)))]
    image = Image.fit((pair["image"] for pair in first), autoencoder=autoencoder)
    return {"image": image, "text": Text.fit((pair["text"] for pair in first), **recipe.text)}


def _pixels(pairs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Pictures -> (B, C, S, S) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(pair["image"]) for pair in pairs])).permute(0, 3, 1, 2) / 127.5 - 1


def _encode(modalities: Mapping[str, Modality[Any]], pairs: Sequence[Mapping[str, Any]]) -> Joint:
    """Raw pairs -> stream -> (B, ...)."""
    with torch.inference_mode():
        return {name: codec.encode([pair[name] for pair in pairs])[""].clone() for name, codec in modalities.items()}


def _stage(
    progress: Callable[[str, int, int, Mapping[str, float]], None] | None, stage: str, settings: OptimiserSettings
) -> Callable[[int, Mapping[str, float]], None] | None:
    return None if progress is None else lambda step, figures: progress(stage, step, settings.steps, figures)


def _describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON, for the saved model and for the run folder."""
    described = {**asdict(recipe), "pairs": repr(recipe.pairs)}
    return dict(json.loads(json.dumps(described)))


def _claim(run: Path, recipe: Recipe) -> None:
    """Write the recipe into a new run folder; refuse one that belongs to another recipe. More steps are no other recipe."""
    described = _describe(recipe)
    file = run / "recipe.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [k for k in described if _settled(described)[k] != _settled(before).get(k)]
        if differing:
            raise ValueError(
                f"{run} holds a run with another {', '.join(differing)}; choose another folder, or the settings in {file}"
            )
    run.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described, indent=1), encoding="utf-8")


def _settled(described: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what may change when a run goes on: its length, and how the model is sampled."""
    free = ("steps", "cooldown", "save_every", "log_every")
    settled = {
        k: ({n: x for n, x in v.items() if n not in free} if k.endswith("training") else v)
        for k, v in described.items()
    }
    return {k: v for k, v in settled.items() if k != "settings"}


def fit(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]],
    settings: OptimiserSettings,
    folder: Path,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, Tensor]:
    """Optimise a model until `settings.steps`, going on from the folder's newest whole checkpoint.

    Args:
        model: its weights are changed.
        loss_of: step -> (loss, named parts to log). It must depend on the step and the weights alone.
        folder: where checkpoints/ and metrics.jsonl lie.
        progress: called with the step and the last logged figures.

    Returns:
        The averaged weights.

    Raises:
        RuntimeError: the loss or its gradient stayed non-finite. SystemExit 143, KeyboardInterrupt: after a checkpoint was saved.
    """
    optimisers = _optimisers(model, settings)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = _resume(folder, model, average, optimisers)
    started, bad = time.monotonic(), 0
    with _Signals() as signals, open(folder / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        for step in range(first, settings.steps):
            loss, parts = loss_of(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            bad = 0 if math.isfinite(norm.item()) else bad + 1
            if bad > MAX_BAD_STEPS:
                raise RuntimeError(
                    f"the loss was not finite in {bad} steps in a row, the last one {step}; lower the learning rate"
                )
            if not bad:
                _update(optimisers, _rate(step, settings))
                _average(average, model, min(settings.ema, 1 - 1 / (step + 2)))
            model.zero_grad(set_to_none=True)
            done = step + 1
            if done % settings.log_every == 0:
                speed = (done - first) * settings.batch / (time.monotonic() - started)
                figures = {"loss": loss.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in parts.items()}}
                _write_line(metrics, {"step": done, **figures, "samples_per_second": round(speed, 1)})
                if progress:
                    progress(done, figures)
            if done % settings.save_every == 0 or done == settings.steps or signals.received:
                checkpoints.save(folder, done, _state(model, average, optimisers))
            signals.leave_if_asked()
    return average


def fit_autoencoder(
    autoencoder: AutoEncoder,
    pictures: Callable[[int], Iterable[Tensor]],
    settings: OptimiserSettings,
    folder: Path,
    *,
    noise: float = 0.1,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> AutoEncoder:
    """Train an autoencoder to give pictures back from standardised latents with a little noise on them.

        loss = mean |x - y| + mean (x - y)^2,   y = D(z + noise * eps),   z = E(x) standardised per channel over the batch

    The noise makes the decoder smooth: latents that diffusion gets slightly wrong still decode to the right picture.

    Args:
        pictures: first step -> batches (B, C, S, S) in [-1, 1], one a step.

    Returns:
        The same autoencoder with its averaged weights.
    """
    batches = _following(pictures)
    autoencoder.train().to(memory_format=torch.channels_last)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = batches(step)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.autocast):
            z = autoencoder.encode(x)
            z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.std((0, 2, 3), keepdim=True) + 1e-4)
            eps = torch.randn(z.shape, generator=generator(settings.seed, "autoencoder", step)).to(z)
            error = autoencoder.decode(z + noise * eps).float() - x
        absolute, squared = error.abs().mean(), error.square().mean()
        return absolute + squared, {"absolute": absolute.detach(), "squared": squared.detach()}

    average = fit(autoencoder, loss_of, settings, folder, progress)
    autoencoder.load_state_dict(average, strict=False)
    z = _latents(autoencoder, pictures(settings.steps - STATISTICS))
    autoencoder.standardise(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    return autoencoder.eval()


@torch.inference_mode()
def _latents(autoencoder: AutoEncoder, batches: Iterable[Tensor]) -> Tensor:
    """The latents of some batches, (n B, c, h, w)."""
    return torch.cat([autoencoder.encode(x) for x in batches])


def fit_network(
    network: Network,
    latents: Callable[[int], Iterable[Joint]],
    objective: Objective,
    settings: OptimiserSettings,
    folder: Path,
    *,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Network:
    """Train a network on the joint of clean latents.

    Args:
        latents: first step -> joints, stream -> (B, ...), one a step.

    Returns:
        The same network with its averaged weights.
    """
    batches = _following(latents)
    network.train()

    def loss_of(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0 = batches(step)
        device = next(iter(x0.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.autocast):
            return denoising_loss(objective, network, x0, generator(settings.seed, "noise", step))

    average = fit(network, loss_of, settings, folder, progress)
    network.load_state_dict(average, strict=False)
    return network.eval()


class Batches(Dataset[Any]):
    """Batch k of a data set as a function of (seed, k) alone, made in a loader process.

    A data set of N samples is gone through in a new order every epoch.
    """

    def __init__(
        self, pairs: Pairs, batch: int, seed: int, encode: Callable[[Sequence[Mapping[str, Any]]], Any]
    ) -> None:
        if len(pairs) < 1:
            raise ValueError("the data set is empty; training needs at least one sample")
        self.pairs, self.batch, self.seed, self.encode = pairs, batch, seed, encode

    def __getitem__(self, step: int) -> Any:
        return self.encode([self.pairs[i] for i in self.indices(step)])

    def indices(self, step: int) -> list[int]:
        """The samples of a step."""
        n = len(self.pairs)
        return [self._order(k // n, k % n) for k in range(step * self.batch, (step + 1) * self.batch)]

    def _order(self, epoch: int, position: int) -> int:
        """The sample at a position of an epoch: an affine permutation i -> (a i + b) mod n with a prime to n.

        It needs no table, so an endless data set costs no memory.
        """
        n = len(self.pairs)
        g = generator(self.seed, "order", epoch)
        a, b = (int(torch.randint(n, (), generator=g)) for _ in range(2))
        while math.gcd(a, n) != 1:
            a += 1
        return (a * position + b) % n

    def from_step(self, step: int, steps: int, workers: int = 1) -> Iterator[Any]:
        """The batches of steps step, ..., steps - 1, drawn ahead by loader processes."""
        loader = DataLoader(
            self, batch_size=None, sampler=range(step, steps), num_workers=workers, worker_init_fn=_deaf
        )
        return iter(loader)


def _deaf(_: int) -> None:
    """A loader process leaves it to the main process to act on a signal that reaches both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _following(batches: Callable[[int], Iterable[Any]]) -> Callable[[int], Any]:
    """A function of the step over a stream of batches that is opened at the first step asked for."""
    stream: list[Iterator[Any]] = []

    def at(step: int) -> Any:
        if not stream:
            stream.append(iter(batches(step)))
        return next(stream[0])

    return at


def _rate(step: int, settings: OptimiserSettings) -> float:
    """The share of the peak learning rate: up linearly, level, down linearly."""
    up = (step + 1) / max(settings.warmup, 1)
    down = (settings.steps - step) / max(settings.cooldown * settings.steps, 1)
    return min(1.0, up, down)


def _optimisers(model: nn.Module, settings: OptimiserSettings) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices inside the blocks if it is asked for. Each group keeps its peak rate."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if settings.muon_lr and "blocks" in name and p.ndim == 2]
    chosen = {id(p) for p in inner}
    decayed = [p for _, p in named if id(p) not in chosen and p.ndim > 1]
    plain = [p for _, p in named if id(p) not in chosen and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    ]
    if inner:
        optimisers.append(
            torch.optim.Muon(inner, lr=settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="original")
        )
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def _update(optimisers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["peak"]
        optimiser.step()


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)


def _state(
    model: nn.Module, average: Mapping[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """All that a run needs to go on, under flat names."""
    state = {f"model.{name}": x for name, x in model.state_dict().items()}
    state |= {f"average.{name}": x for name, x in average.items()}
    for i, optimiser in enumerate(optimisers):
        for index, values in optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{i}.{index}.{name}": torch.as_tensor(x) for name, x in values.items()}
    return state


def _resume(
    folder: Path, model: nn.Module, average: dict[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]
) -> int:
    """Load the newest whole checkpoint of a folder, if there is one; the step to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoints.newest(folder)
    if found is None:
        return 0
    step, state = found
    model.load_state_dict({name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.")})
    for name, x in average.items():
        x.copy_(state[f"average.{name}"])
    for i, optimiser in enumerate(optimisers):
        saved: dict[int, dict[str, Tensor]] = {}
        for name, x in state.items():
            if name.startswith(f"optimiser.{i}."):
                index, key = name.split(".")[2:]
                saved.setdefault(int(index), {})[key] = x
        optimiser.load_state_dict({**optimiser.state_dict(), "state": saved})
    log.info("going on from step %d of %s", step, folder)
    return step


def _write_line(file: Any, figures: Mapping[str, float]) -> None:
    """One JSON line; a number that is not finite becomes null, which JSON can say."""
    safe = {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
    file.write(json.dumps(safe, allow_nan=False) + "\n")
    file.flush()


class _Signals:
    """Remember SIGINT and SIGTERM until the step is done and saved; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "_Signals":
        self.before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        self.received = number
        signal.signal(number, self.before[signal.Signals(number)])

    def leave_if_asked(self) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)

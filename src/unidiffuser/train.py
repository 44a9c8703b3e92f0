"""Training: from a preset to a saved model, codecs first, then the network.

    train(preset, folder)

The data, the timesteps and the noise of step k are functions of (seed, k) alone, so the same call on the same folder
goes on where it was stopped and ends in the same bits. The loop itself is in `optimise`.
"""

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiffuser.checkpoints import Settings
from unidiffuser.datasets import Pairs
from unidiffuser.joint import Joint, generator, map_joint
from unidiffuser.losses import Objective, denoising_loss
from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.text import Text
from unidiffuser.networks import Network, build
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig
from unidiffuser.optimise import OptimiserSettings, fit
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.process import PROCESSES, Prediction

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Told (stage, step, steps, the last figures)."""

Follow = Callable[[int, Mapping[str, float]], None]
"""Told (step, the last figures) of one stage."""

STATISTICS = 20
"""The autoencoder's latents are standardised over the pictures of its last so many steps."""


@dataclass(frozen=True, kw_only=True)
class Preset:
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
    max_scale: float
    """The bound on that error's growth towards t = 0; see `losses.Objective`."""
    ends: float
    """The share of timesteps exactly at 0, and at 1; see `timesteps.draw_timesteps`."""
    training: OptimiserSettings
    """How the network is optimised."""
    settings: Settings
    """How the finished model is sampled unless the user says otherwise."""


def train(preset: Preset, run: Path, *, device: str = "cpu", progress: Progress | None = None) -> UniDiffuser:
    """Carry out a preset, going on from what the run folder holds, and save the model as RUN/final.

    Args:
        preset: the run.
        run: RUN/autoencoder and RUN/network hold the checkpoints and metrics.jsonl of the two stages.
        device: where to compute.
        progress: called with (stage, step, steps, figures).

    Returns:
        The trained model.

    Raises:
        ValueError: the folder belongs to a run with other settings.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    _claim(run, preset)
    torch.manual_seed(preset.training.seed)
    autoencoder = _trained_autoencoder(preset, run, device, progress)
    modalities = _codecs(preset, autoencoder)
    network = _trained_network(preset, run, modalities, device, progress)
    model = UniDiffuser(
        network.cpu(),
        preset.process,
        preset.prediction,
        modalities,
        settings=preset.settings,
        name=preset.name,
        training=_describe(preset),
    )
    model.save(run / "final", force=True)
    return model


def _trained_autoencoder(preset: Preset, run: Path, device: str, progress: Progress | None) -> AutoEncoder:
    settings = preset.autoencoder_training
    batches = Batches(preset.pairs, settings.batch, settings.seed, _pixels, device)
    autoencoder = AutoEncoder(preset.autoencoder).to(device)
    follow = _stage(progress, "autoencoder", settings)
    return fit_autoencoder(autoencoder, batches, settings, run / "autoencoder", progress=follow).cpu()


def _trained_network(
    preset: Preset, run: Path, modalities: Mapping[str, Modality[Any]], device: str, progress: Progress | None
) -> Network:
    settings = preset.training
    streams = {name: codec.streams[""] for name, codec in modalities.items()}
    network = build({**preset.network, "streams": streams}).to(device)
    batches = Batches(
        preset.pairs, settings.batch, settings.seed, partial(_encode, modalities, settings.autocast), device
    )
    process = PROCESSES[preset.process]()
    objective = Objective(
        process=process,
        prediction=preset.prediction,
        space=preset.space,
        max_scale=preset.max_scale,
        ends=preset.ends,
    )
    follow = _stage(progress, "network", settings)
    return fit_network(network, batches, objective, settings, run / "network", progress=follow)


def _codecs(preset: Preset, autoencoder: AutoEncoder) -> dict[str, Modality[Any]]:
    """The picture and the text codec, fitted on the first samples."""
    first = [preset.pairs[i] for i in range(min(preset.fitted_on, len(preset.pairs)))]
    image = Image.fit((pair["image"] for pair in first), autoencoder=autoencoder)
    return {"image": image, "text": Text.fit((pair["text"] for pair in first), **preset.text)}


def _pixels(pairs: Sequence[Mapping[str, Any]]) -> Joint:
    """Pictures -> (B, C, S, S) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(pair["image"]) for pair in pairs]))
    return {"image": pixels.permute(0, 3, 1, 2) / 127.5 - 1}


def _encode(modalities: Mapping[str, Modality[Any]], autocast: bool, pairs: Sequence[Mapping[str, Any]]) -> Joint:
    """Raw pairs -> stream -> (B, ...)."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return {
            name: codec.encode_together([pair[name] for pair in pairs])[""].clone()
            for name, codec in modalities.items()
        }


def _stage(progress: Progress | None, stage: str, settings: OptimiserSettings) -> Follow | None:
    return None if progress is None else lambda step, figures: progress(stage, step, settings.steps, figures)


def _describe(preset: Preset) -> dict[str, Any]:
    """The preset as JSON, for the saved model and for the run folder."""
    described = {**asdict(preset), "pairs": repr(preset.pairs)}
    return dict(json.loads(json.dumps(described)))


def _claim(run: Path, preset: Preset) -> None:
    """Write the preset into a new run folder; refuse a folder of another preset (more steps are no other preset)."""
    described = _describe(preset)
    file = run / "preset.json"
    if file.exists():
        mine, before = _settled(described), _settled(json.loads(file.read_text(encoding="utf-8")))
        if differing := [k for k in mine if mine[k] != before.get(k)]:
            names = ", ".join(differing)
            raise ValueError(
                f"{run} holds a run with another {names}; choose another folder, or the settings of {file}"
            )
    run.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described, indent=1), encoding="utf-8")


def _settled(described: Mapping[str, Any]) -> dict[str, Any]:
    """A preset without what may change when a run goes on: the network's steps, and how the model is sampled."""
    free = ("steps", "cooldown", "save_every", "log_every")
    settled = {name: value for name, value in described.items() if name != "settings"}
    return settled | {"training": {name: x for name, x in described["training"].items() if name not in free}}


def fit_autoencoder(
    autoencoder: AutoEncoder,
    pictures: "Batches",
    settings: OptimiserSettings,
    folder: Path,
    *,
    noise: float = 0.1,
    progress: Follow | None = None,
) -> AutoEncoder:
    """Train an autoencoder to give pictures back from standardised latents with a little noise on them.

        loss = mean |x - y| + mean (x - y)^2,   y = D(z + noise * eps),   z = E(x) standardised over the batch

    The noise makes the decoder smooth: latents that diffusion gets slightly wrong still decode to the right picture.

    Args:
        pictures: joints of one stream "image", (B, C, S, S) in [-1, 1].

    Returns:
        The same autoencoder with its averaged weights.
    """
    following = pictures.following(settings.steps)
    autoencoder.train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = following(step)["image"]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.autocast):
            z = autoencoder.encode(x)
            z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.std((0, 2, 3), keepdim=True) + 1e-4)
            eps = torch.randn(z.shape, generator=generator(settings.seed, "autoencoder", step)).to(z)
            error = autoencoder.decode(z + noise * eps).float() - x
        absolute, squared = error.abs().mean(), error.square().mean()
        return absolute + squared, {"absolute": absolute.detach(), "squared": squared.detach()}

    average = fit(autoencoder, loss_of, settings, folder, progress)
    autoencoder.load_state_dict(average, strict=False)
    last = pictures.from_step(max(settings.steps - STATISTICS, 0), settings.steps)
    with torch.inference_mode():
        z = torch.cat([autoencoder.encode(x["image"]) for x in last])
    autoencoder.standardise(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    return autoencoder.eval()


def fit_network(
    network: Network,
    latents: "Batches",
    objective: Objective,
    settings: OptimiserSettings,
    folder: Path,
    *,
    progress: Follow | None = None,
) -> Network:
    """Train a network on the joint of clean latents.

    Args:
        latents: joints of clean streams.

    Returns:
        The same network with its averaged weights.
    """
    following = latents.following(settings.steps)
    network.train()

    def loss_of(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0 = following(step)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=settings.autocast):
            return denoising_loss(objective, network, x0, generator(settings.seed, "noise", step))

    average = fit(network, loss_of, settings, folder, progress)
    network.load_state_dict(average, strict=False)
    return network.eval()


class Batches(Dataset[Joint]):
    """Batch k of a data set as a function of (seed, k) alone, made in a loader process.

    A data set of N samples is gone through in a new order every epoch.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch: int,
        seed: int,
        encode: Callable[[Sequence[Mapping[str, Any]]], Joint],
        device: str = "cpu",
    ) -> None:
        """pairs: the data. encode: the raw pairs of a batch -> a joint. device: where the batches go."""
        if len(pairs) < 1:
            raise ValueError("the data set is empty; training needs at least one sample")
        self.pairs, self.batch, self.seed, self.encode = pairs, batch, seed, encode
        self.device = torch.device(device)

    def __getitem__(self, step: int) -> Joint:
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

    def from_step(self, step: int, steps: int) -> Iterator[Joint]:
        """The batches of steps step, ..., steps - 1, drawn ahead by a loader process."""
        loader = DataLoader(
            self, batch_size=None, sampler=range(step, steps), num_workers=1, prefetch_factor=4, worker_init_fn=_deaf
        )
        return (map_joint(lambda x: x.to(self.device), joint) for joint in loader)

    def following(self, steps: int) -> Callable[[int], Joint]:
        """A function of the step, to be called for one step after the other; the first call says where to begin."""
        opened: list[Iterator[Joint]] = []

        def at(step: int) -> Joint:
            if not opened:
                opened.append(self.from_step(step, steps))
            return next(opened[0])

        return at


def _deaf(_: int) -> None:
    """A loader process leaves it to the main process to act on a signal that reaches both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Training: from a preset to a saved model, codecs first, then the network.

    train(preset, folder)

    RUN/autoencoder   checkpoints and metrics.jsonl of the picture codec, if it has an autoencoder
    RUN/codecs        the fitted codecs                    RUN/network   checkpoints and metrics.jsonl of the network
    RUN/previews      samples of the run in progress       RUN/final     the model; RUN/final-DECAY: further averages
    RUN/adapter.safetensors    the low-rank additions alone, if that is what was trained

The data, the timesteps and the noise of step k are functions of (seed, k) alone, so the same call on the same folder
goes on where it was stopped and ends in the same bits. The loop itself is in `optimise`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiffuser import lora
from unidiffuser.checkpoints import adapter as adapters
from unidiffuser.checkpoints import box, native
from unidiffuser.codecs import Codecs
from unidiffuser.joint import Joint
from unidiffuser.losses import Objective
from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import Image
from unidiffuser.networks import Network, build
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.process import PROCESSES
from unidiffuser.stages import Follow, fit_autoencoder, fit_averages
from unidiffuser.training import codecs, folder, previews, snapshot, warm
from unidiffuser.training.batches import Batches
from unidiffuser.training.encoding import Encoding, Reading
from unidiffuser.training.preset import OptimiserSettings, describe
from unidiffuser.training.preset import Preset as Preset
from unidiffuser.training.team import Team, join

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Told (stage, step, steps, the last figures)."""


def train(preset: Preset, run: Path, *, device: str = "cpu", progress: Progress | None = None) -> UniDiffuser:
    """Carry out a preset, going on from what the run folder holds, and save the model as RUN/final.

    Under `torchrun` all processes call it; the first one writes and tells the progress.

    Args:
        preset: the run.
        run: the folder; see above.
        device: where to compute.
        progress: called with (stage, step, steps, figures).

    Returns:
        The trained model.

    Raises:
        ValueError: the folder belongs to a run with other settings or from another model, or to another process.
        TrainingError: it cannot go on; what was trained is saved.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    preset = warm.pinned(preset)
    team = join(device)
    try:
        if not team.first:
            done = team.tell(None)
            return UniDiffuser.from_pretrained(run / "final") if done else _carry_out(preset, run, team, None)
        with folder.locked(run):
            folder.claim(run, describe(preset))
            model = finished(preset, run)
            team.tell(model is not None)
            return model or _carry_out(preset, run, team, progress)
    finally:
        team.leave()


def finished(preset: Preset, run: Path) -> UniDiffuser | None:
    """The model of a run that is done; None if there is something left to do.

    Raises:
        ModelError: RUN/final is damaged.
    """
    if not (run / "final").is_dir():
        return None
    parts = native.read(run / "final")
    return UniDiffuser.from_parts(parts) if parts.training == describe(warm.pinned(preset)) else None


def _carry_out(preset: Preset, run: Path, team: Team, progress: Progress | None) -> UniDiffuser:
    modalities = codecs.read(run / "codecs")
    while modalities is None:
        if team.first:
            codecs.write(run / "codecs", _codecs(preset, run, team, progress))
        else:
            time.sleep(1)  # an autoencoder may take hours, longer than processes wait for one another
        modalities = codecs.read(run / "codecs")
    start = native.read(box.find(preset.start)).awake() if preset.start else None
    torch.manual_seed(preset.training.seed)
    description: dict[str, Any] = {**preset.network, "streams": Codecs(modalities).shapes}
    network = warm.started(start, description) if start else build(description)
    description = network.describe()
    if preset.adapter:
        lora.adapt(network, preset.adapter.rank, preset.adapter.alpha, preset.adapter.layers)
    averages = _averages(preset, run, modalities, network.to(team.device), description, team, progress)
    models = []
    for weights in averages:
        whole = build(description)
        if preset.adapter and start:
            whole.load_state_dict(warm.started(start, description).state_dict())
            lora.merge(whole, lora.additions(weights, preset.adapter.scale))
        else:
            whole.load_state_dict({name: x.cpu() for name, x in weights.items()})
        models.append(_model(preset, whole, modalities))
    if team.first:
        if preset.adapter and start:
            additions = lora.additions(averages[0], preset.adapter.scale)
            adapters.write(run / "adapter.safetensors", additions, base=start.digest)
        for decay, model in zip(preset.training.more_ema, models[1:], strict=True):
            model.save(run / f"final-{decay:g}", force=True)
        models[0].save(run / "final", force=True)
    team.wait()
    return models[0]


def _averages(
    preset: Preset,
    run: Path,
    modalities: Mapping[str, Modality[Any]],
    network: Network,
    description: Mapping[str, Any],
    team: Team,
    progress: Progress | None,
) -> list[dict[str, Tensor]]:
    """Train the network. Returns the averages of its weights."""
    settings = preset.training
    batches = Batches(
        Reading(preset.pairs),
        settings.batch,
        settings.seed,
        Encoding(modalities, settings.autocast),
        team.device,
        parts=settings.accumulate,
        rank=team.rank,
        size=team.size,
        workers=preset.workers,
    )
    objective = Objective(
        process=PROCESSES[preset.process](),
        prediction=preset.prediction,
        space=preset.space,
        weights=preset.weights,
        max_scale=preset.max_scale,
        ends=preset.ends,
    )
    saved = None
    if team.first:
        snapshot.write(run, preset, description)
        saved = previews.watching(run, preset, modalities)
    return fit_averages(
        network,
        batches,
        objective,
        settings,
        run / "network",
        progress=_stage(progress, "network", settings),
        team=team,
        sharding=preset.sharding,
        tensorboard=preset.tensorboard,
        saved=saved,
    )


def _codecs(preset: Preset, run: Path, team: Team, progress: Progress | None) -> dict[str, Modality[Any]]:
    """The codec of every modality: one that is known, or one that is fitted."""
    known = warm.known_codecs(preset)
    values = preset.values or partial(codecs.first_values, preset.pairs)
    torch.manual_seed(preset.training.seed)
    autoencoder = partial(_trained_autoencoder, preset, run, team, progress)
    return known | {
        name: codecs.fit_codec(name, entry, values, preset.fitted_on, autoencoder)
        for name, entry in preset.codecs.items()
        if name not in known
    }


def _trained_autoencoder(
    preset: Preset, run: Path, team: Team, progress: Progress | None, modality: str
) -> AutoEncoder:
    settings = preset.autoencoder_training
    assert settings is not None
    config = AutoEncoderConfig(**preset.codecs[modality]["autoencoder"])
    pixels = partial(_pixels, modality, Image(size=config.size, channels=config.channels))
    having = codecs.Having(preset.pairs, modality)
    batches = Batches[Joint](having, settings.batch, settings.seed, pixels, team.device, workers=preset.workers)
    place = run / ("autoencoder" if modality == "image" else f"autoencoder-{modality}")
    follow = _stage(progress, place.name, settings)
    return fit_autoencoder(AutoEncoder(config).to(team.device), batches, settings, place, progress=follow).cpu()


def _pixels(modality: str, codec: Image, pairs: Sequence[Mapping[str, Any]]) -> Joint:
    """The pictures of some pairs -> (B, C, S, S) in [-1, 1]."""
    return {"image": codec.encode_together([pair[modality] for pair in pairs])[""]}


def _model(preset: Preset, network: Network, modalities: Mapping[str, Modality[Any]]) -> UniDiffuser:
    return UniDiffuser(
        network,
        preset.process,
        preset.prediction,
        modalities,
        settings=preset.settings,
        name=preset.name,
        training=describe(preset),
    )


def _stage(progress: Progress | None, stage: str, settings: OptimiserSettings) -> Follow | None:
    return None if progress is None else lambda step, figures: progress(stage, step, settings.steps, figures)

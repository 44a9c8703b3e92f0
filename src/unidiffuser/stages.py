"""The two things that training fits: an autoencoder to pictures, and a network to joints of clean latents.

Each is a loss as a function of the step, handed to the loop of `optimise`. Neither knows where data comes from.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unidiffuser.joint import Joint, generator, modalities_of
from unidiffuser.losses import Objective, draw, noised_loss
from unidiffuser.networks import Network
from unidiffuser.networks.autoencoder import AutoEncoder
from unidiffuser.optimise import fit, fit_all
from unidiffuser.training.batches import Batch, Batches
from unidiffuser.training.encoding import Refusals
from unidiffuser.training.preset import OptimiserSettings, Sharding
from unidiffuser.training.team import Team, share

Follow = Callable[[int, Mapping[str, float]], None]
"""Told (step, the last figures) of one stage."""

STATISTICS = 20
"""The autoencoder's latents are standardised over the pictures of its last so many steps."""


def fit_autoencoder(
    autoencoder: AutoEncoder,
    pictures: Batches[Joint],
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
    following = pictures.following(settings.steps * settings.accumulate)
    autoencoder.train()

    def loss_of(number: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = following(number)["image"]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.autocast):
            z = autoencoder.encode(x)
            z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.std((0, 2, 3), keepdim=True) + 1e-4)
            eps = torch.randn(z.shape, generator=generator(settings.seed, "autoencoder", number)).to(z)
            error = autoencoder.decode(z + noise * eps).float() - x
        absolute, squared = error.abs().mean(), error.square().mean()
        return absolute + squared, {"absolute": absolute.detach(), "squared": squared.detach()}

    average = fit(autoencoder, loss_of, settings, folder, progress)
    autoencoder.load_state_dict(average, strict=False)
    end = settings.steps * settings.accumulate
    last = pictures.from_step(max(end - STATISTICS, 0), end)
    with torch.inference_mode():
        z = torch.cat([autoencoder.encode(x["image"]) for x in last])
    autoencoder.standardise(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    return autoencoder.eval()


def fit_network(
    network: Network,
    latents: Batches[Any],
    objective: Objective,
    settings: OptimiserSettings,
    folder: Path,
    *,
    progress: Follow | None = None,
) -> Network:
    """Train a network on joints of clean latents, in this process alone; see `fit_averages`.

    Returns:
        The same network with its averaged weights.
    """
    average = fit_averages(network, latents, objective, settings, folder, progress=progress)[0]
    network.load_state_dict(average, strict=False)
    return network.eval()


def fit_averages(
    network: Network,
    latents: Batches[Any],
    objective: Objective,
    settings: OptimiserSettings,
    folder: Path,
    *,
    progress: Follow | None = None,
    team: Team | None = None,
    sharding: Sharding = "none",
    tensorboard: bool = False,
    saved: Callable[[int], None] | None = None,
) -> list[dict[str, Tensor]]:
    """Train a network on joints of clean latents.

    Args:
        latents: a `Batch` a part, or a joint of clean streams.
        objective: what is minimised.
        team: the processes that train together; None: this one alone.
        sharding, tensorboard, saved: see `Preset` and `optimise.fit`.

    Returns:
        The averages of the weights that train, whole: the one that becomes the model first.
    """
    team = team or Team()
    following = latents.following(settings.steps * settings.accumulate)
    called, refusals = _prepared(network, settings, team, sharding), Refusals()

    def loss_of(number: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        batch = _batch(following(number))
        refusals.add(batch)
        step, places = number // settings.accumulate, latents.places(number)
        shapes = {s: tuple(x.shape[1:]) for s, x in batch.x0.items()}
        eps, t = draw(shapes, settings.seed, step, places, objective.ends)
        eps = {s: x.to(team.device) for s, x in eps.items()}
        t = {m: x.to(team.device) for m, x in t.items()}
        with torch.autocast(team.device.type, torch.bfloat16, enabled=settings.autocast):
            return noised_loss(objective, called, batch.x0, eps, t, batch.label, present=batch.present, expected=True)

    return fit_all(
        network, loss_of, settings, folder, progress, team=team, called=called, tensorboard=tensorboard, saved=saved
    )


def _prepared(network: Network, settings: OptimiserSettings, team: Team, sharding: Sharding) -> Callable[..., Joint]:
    """The network as a step calls it: recomputing, compiled and shared as the settings say."""
    network.train()
    if settings.recompute:
        for block in network.blocks():
            setattr(block, "forward", partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010
    called = share(network, team, sharding)
    return torch.compile(called) if settings.compile else called


def _batch(made: Any) -> Batch:
    """What a loader made, as a batch: a joint alone is whole and of one source."""
    if isinstance(made, Batch):
        return made
    first = next(iter(made.values()))
    there = torch.ones(len(first), dtype=torch.bool, device=first.device)
    present = dict.fromkeys(modalities_of(made), there)
    return Batch(x0=made, present=present, label=torch.zeros(len(first), dtype=torch.long, device=first.device))

"""From a data set and a few wishes to a whole preset; what is derived here is printed by `--print-config`.

Pictures of at most 64 pixels a side are diffused as pixels, in patches that make at most 256 tokens; larger ones as
the latents of an autoencoder (8 pixels a cell) that is trained first. Encoded data are taken as they are. What the
network puts out and where its error is measured follow what was found best for small models (docs/training.md): data
out, velocity error, rectified flow.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from unidiffuser.checkpoints import Settings
from unidiffuser.codecs import Codecs
from unidiffuser.datasets import Pairs
from unidiffuser.guidance import Guidance
from unidiffuser.modalities import Modality
from unidiffuser.training.preset import Adapting, OptimiserSettings, Preset
from unidiffuser.training.sizes import Size

LARGEST_PIXELS = 64
"""Pictures with a longer side get an autoencoder."""
MOST_TOKENS = 256
"""Of a picture of pixels."""
FITTED_ON = 200_000
"""So many values of each modality are looked at to fit its codec."""
AUTOENCODER_STEPS = 3000


def preset_for(
    pairs: Pairs,
    kinds: Mapping[str, Mapping[str, Any]],
    labels: int,
    data: str,
    size: Size,
    *,
    name: str = "model",
    batch: int | None = None,
    steps: int | None = None,
    save_every: int | None = None,
    seed: int = 0,
    start: str = "",
    adapter: Adapting | None = None,
    encoders: Mapping[str, Modality[Any]] | None = None,
) -> Preset:
    """The preset of a run.

    Args:
        pairs, kinds, labels, data: the data, the codec of each modality, how many sources, and what names them.
        size: the dial's setting.
        batch, steps, save_every: in place of what is derived.
        seed: of everything.
        start, adapter, encoders: see `Preset`.

    Raises:
        ValueError: a number is out of range, or pictures have a size that no patch fits.
    """
    codecs = {modality: dict(entry) if encoders else codec_for(entry) for modality, entry in kinds.items()}
    steps, batch = size.steps if steps is None else steps, size.batch if batch is None else batch
    training = training_for(size, steps, batch, save_every, seed)
    autoencoder = None
    if any("autoencoder" in entry for entry in codecs.values()):
        autoencoder = OptimiserSettings(
            steps=min(AUTOENCODER_STEPS, max(10 * steps, 100)),
            batch=32,
            lr=1.5e-3,
            warmup=min(200, max(steps, 10)),
            cooldown=0.3,
            ema=0.998,
            save_every=500,
            log_every=100,
            seed=seed,
        )
    network = {
        "kind": "uvit",
        "dim": size.dim,
        "depth": size.depth,
        "heads": size.heads,
        "patch": patch_for(encoded_sides(encoders) if encoders else sides_of(codecs.values())),
        "norm": "pre",
        "rotary": True,
        "timestep_mlp": True,
        "labels": labels if labels > 1 else 0,
    }
    return Preset(
        name=name,
        pairs=pairs,
        data=data,
        fitted_on=FITTED_ON,
        codecs=codecs,
        autoencoder_training=autoencoder,
        network=network,
        process="rectified_flow",
        prediction="x0",
        space="v",
        max_scale=2.0,
        ends=0.1,
        training=training,
        start=start,
        adapter=adapter,
        encoders=encoders,
        settings=Settings(steps=25, solver="dpmpp_2m", grid="uniform", guidance=Guidance(scale=1.0)),
    )


def training_for(size: Size, steps: int, batch: int, save_every: int | None, seed: int) -> OptimiserSettings:
    """The optimiser's settings; averages and warm-up are as long as the run allows."""
    long = _decay(steps / 20)
    return OptimiserSettings(
        steps=steps,
        batch=batch,
        lr=size.lr,
        betas=(0.9, 0.99),
        warmup=min(500, max(steps // 20, 1)),
        cooldown=0.25,
        ema=long,
        more_ema=tuple(d for d in (_decay(steps / 100),) if d != long),
        save_every=save_every or min(1000, max(steps // 10, 1)),
        log_every=min(50, max(steps // 20, 1)),
        seed=seed,
    )


def codec_for(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The codec of a modality: as the data has it, large pictures through an autoencoder."""
    codec = dict(entry)
    if codec.get("kind") == "image" and "autoencoder" not in codec and codec.get("size", 0) > LARGEST_PIXELS:
        size, channels = codec.pop("size"), codec.pop("channels", 3)
        factor = next(f for f in (8, 4) if size % f == 0) if size % 4 == 0 else 0
        if not factor:
            raise ValueError(f"pictures of {size} pixels a side are no multiple of 8; declare a size that is")
        codec["autoencoder"] = {"size": size, "channels": channels, "latent_channels": 4, "factor": factor}
        codec["autoencoder"] |= {"width": 64, "blocks": 1 if size <= 128 else 2}
    return codec


def encoded_sides(encoders: Mapping[str, Modality[Any]]) -> list[int]:
    """The sides of the grids that encoded data hold."""
    return [side for shape in Codecs(encoders).shapes.values() if len(shape) == 3 for side in shape[1:]]


def sides_of(codecs: Iterable[Mapping[str, Any]]) -> list[int]:
    """The sides of the grids that codecs will make when they are fitted."""
    sides: list[int] = []
    for codec in codecs:
        if "autoencoder" in codec:
            sides.append(codec["autoencoder"]["size"] // codec["autoencoder"]["factor"])
        elif codec.get("kind") == "image":
            sides.append(codec["size"])
        elif codec.get("kind") == "sound":
            sides += [codec.get("mels", 64), codec.get("frames", 64)]
    return sides


def patch_for(sides: Iterable[int]) -> int:
    """The patch of grids with these sides: at most so many tokens for the largest, and a divisor of every side."""
    sides = list(sides)
    fitting = [p for p in (1, 2, 4, 8, 16) if all(side % p == 0 for side in sides)]
    return next((p for p in fitting if p > 1 and all((side // p) ** 2 <= MOST_TOKENS for side in sides)), fitting[-1])


def _decay(length: float) -> float:
    """The decay of an average over about so many steps, from 10 to 10,000."""
    return float(f"{1 - 1 / min(max(length, 10), 10_000):.4g}")

"""Complete runs as typed values: `unidiffuser train NAME --run FOLDER` carries one out."""

from collections.abc import Callable
from dataclasses import asdict

from unidiffuser.checkpoints import Settings
from unidiffuser.datasets.scenes import Scenes
from unidiffuser.distill import Distillation
from unidiffuser.guidance import Guidance
from unidiffuser.networks.autoencoder import AutoEncoderConfig
from unidiffuser.training.preset import OptimiserSettings, Preset

ENDLESS = 10_000_000
"""More scenes than any run here sees; they are drawn on demand."""


def scenes() -> Preset:
    """The model in the box: 64 x 64 pictures of coloured shapes, and sentences about them."""
    return Preset(
        name="scenes",
        pairs=Scenes(split="train", length=ENDLESS),
        fitted_on=4000,
        codecs={
            "image": {"kind": "image", "autoencoder": asdict(AutoEncoderConfig(size=64, width=64, blocks=1))},
            "text": {"kind": "text", "length": 20, "width": 32},
        },
        autoencoder_training=OptimiserSettings(
            steps=3000, batch=32, lr=1.5e-3, warmup=200, cooldown=0.3, ema=0.998, save_every=500, log_every=100
        ),
        network={
            "kind": "uvit",
            "dim": 256,
            "depth": 6,
            "heads": 4,
            "patch": 2,
            "norm": "pre",
            "rotary": True,
            "timestep_mlp": True,
        },
        process="rectified_flow",
        prediction="x0",
        space="v",
        max_scale=2.0,  # the decoder forgives what is finer: with noise 0.2 on its latents it is never read wrong
        ends=0.2,
        training=OptimiserSettings(
            steps=50_000,
            batch=64,
            lr=6e-4,
            muon=2e-3,
            betas=(0.9, 0.999),
            warmup=300,
            cooldown=0.4,
            save_every=1000,
            log_every=100,
        ),
        settings=Settings(steps=50, solver="sde_dpmpp_2m", grid="uniform", guidance=Guidance(scale=2.0)),
    )


def student(steps: int = 4000) -> Distillation:
    """A one-step student of any teacher, in so many steps of the optimiser.

    Its method learns the ratio from data, so the teacher is not guided, unless `guidance` is set to say so.
    """
    if steps < 1:
        raise ValueError(f"a student is taught in 1 step of the optimiser or more, not in {steps}")
    return Distillation(
        guidance=None,  # as the method needs it, should another be put in its place: `distill.guidance_of`
        warmup=min(500, steps // 4),
        training=OptimiserSettings(
            steps=steps,
            batch=40,
            lr=1e-4,
            betas=(0.0, 0.999),
            warmup=min(100, max(steps // 20, 1)),
            cooldown=0.25,
            weight_decay=0.0,
            ema=float(f"{1 - 1 / min(max(steps / 10, 10), 2000):.4g}"),
            save_every=min(500, max(steps // 10, 1)),
            log_every=min(50, max(steps // 20, 1)),
        ),
        preview_every=max(steps // 8, 1),
    )


PRESETS: dict[str, Callable[[], Preset]] = {"scenes": scenes}
"""Every preset by name."""

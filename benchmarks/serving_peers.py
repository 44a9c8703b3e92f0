"""The servers that `serving.py` measures ours against: FastAPI, a lock, and one request at a time.

They take our request ({"prompt", "unidiffuser": {"seed", "steps"}}) and answer with a PNG in base64, as people write it
in an afternoon.
"""

import argparse
import base64
import io
import threading
from collections.abc import Callable
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL.Image import Image

from unidiffuser import UniDiffuser

Draw = Callable[[str, int, int], Image]
"""(prompt, seed, steps) -> picture."""


def plain(model: UniDiffuser) -> Draw:
    """Our own model through its Python interface."""

    def draw(prompt: str, seed: int, steps: int) -> Image:
        [sample] = model.sample("image", text=prompt, seed=seed, steps=steps, guidance=0.0)
        picture: Image = sample["image"]
        return picture

    return draw


def diffusers(model: UniDiffuser) -> Draw:
    """A DiTPipeline whose transformer has the blocks, the width, the latents and the patch of the model."""
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler

    config: Any = model.network.config
    channels, side, _ = config.streams["image"]
    transformer = DiTTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.dim // config.heads, num_layers=config.depth + 1,
        in_channels=channels, out_channels=channels, sample_size=side, patch_size=config.patch,
    )  # fmt: skip
    halvings = (64 // side).bit_length()  # blocks of an autoencoder that makes 64 pixels of the latents
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * halvings, up_block_types=("UpDecoderBlock2D",) * halvings,
        block_out_channels=(64,) * halvings, layers_per_block=1, latent_channels=channels,
    )  # fmt: skip
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), DPMSolverMultistepScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int, steps: int) -> Image:
        generator = torch.Generator().manual_seed(seed)
        made = pipeline([0], guidance_scale=1.0, generator=generator, num_inference_steps=steps)
        picture: Image = made.images[0]
        return picture

    return draw


KINDS: dict[str, Callable[[UniDiffuser], Draw]] = {"plain": plain, "diffusers": diffusers}


def app_of(draw: Draw) -> FastAPI:
    """The server around it."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/images/generations")
    def generations(body: dict[str, Any]) -> dict[str, Any]:
        with lock, torch.inference_mode():
            picture = draw(body["prompt"], body["unidiffuser"]["seed"], body["unidiffuser"]["steps"])
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}

    return app


def main() -> None:
    """Serve one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    model = UniDiffuser.from_pretrained(args.model)
    uvicorn.run(app_of(KINDS[args.kind](model)), port=args.port, log_level="error")


if __name__ == "__main__":
    main()

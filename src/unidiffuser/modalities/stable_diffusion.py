"""Pictures of the released UniDiffuser: one modality with two streams.

    latent   (4, H/8, W/8): a draw from the posterior of Stable Diffusion's autoencoder, times its scaling factor
    clip     (1, 512): the picture's embedding by CLIP, not normalised

A picture is turned upright, cut to the shape of its size around its middle, and resized by Lanczos; CLIP sees that
picture resized to its own size. Only the latent is decoded. The width and height may be any multiples of `multiple`;
the parts are loaded when they are first used, and need the diffusers and transformers libraries (the extra "released").

It knows no text and no diffusion.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import PIL.Image
import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unidiffuser.joint import noise_like
from unidiffuser.modalities import Modality, check_whole, expect_keys, expect_shape
from unidiffuser.modalities.image import (
    MAX_PIXELS,
    Picture,
    centre,
    known_cells,
    picture_of,
    pixels_of,
    read_picture,
    resized,
    upright,
)
from unidiffuser.offload import Offloaded, Weights
from unidiffuser.pretrained import asleep

PARTS = {"autoencoder": "autoencoder_kl", "vision": "clip_vision"}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_LOG_VARIANCE, MIN_LOG_VARIANCE = 20.0, -30.0


class StableDiffusion(Modality[Picture]):
    """A picture as the latents of an autoencoder and an embedding."""

    kind: ClassVar[str] = "stable_diffusion"
    media_type: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"
    lossy: ClassVar[bool] = True

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: "width" and "height" in pixels, "multiple" that both must be of, "embedding": numbers of the CLIP
                stream, "autoencoder" and "vision": the settings of the parts, None for one that is missing.
            state: "autoencoder.*" and "vision.*".
        """
        self._config, self.weights = dict(config), Weights.of(state)
        self.parts = {
            name: asleep(kind, config[name], self.weights.under(f"{name}."))
            for name, kind in PARTS.items()
            if config[name] is not None
        }

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._config["width"], self._config["height"]

    @property
    def multiple(self) -> int:
        """Pixels that width and height must be multiples of."""
        return int(self._config["multiple"])

    @property
    def factor(self) -> int:
        """Pixels a side of a latent cell."""
        return int(2 ** (len(self._config["autoencoder"]["block_out_channels"]) - 1))

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """The latent grid and the CLIP token; see the head of this file."""
        channels, (width, height) = self._config["autoencoder"]["latent_channels"], self.size
        grid = (channels, height // self.factor, width // self.factor)
        return {"clip": (1, self._config["embedding"]), "latent": grid}

    def resized(self, width: int, height: int) -> Self:
        """The same codec, with the same parts, for pictures of another size."""
        multiple = self.multiple
        if width < 1 or height < 1 or width % multiple or height % multiple or width * height > MAX_PIXELS:
            raise ValueError(
                f"this model cannot make pictures of {width} x {height}; width and height must be multiples of "
                f"{multiple}, at most {MAX_PIXELS} pixels in all"
            )
        other = type(self).__new__(type(self))
        other.__dict__ = self.__dict__ | {"_config": self._config | {"width": width, "height": height}}
        return other

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None, *, keep: bool = True) -> None:
        for each in self.parts.values():
            each.place(device, dtype or torch.float32, keep=keep)

    def check(self, raw: Any) -> Picture:
        """A picture of our size from a PIL image or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
        picture = upright(raw).convert("RGB")
        if picture.size != self.size:
            picture = centre(picture, *self.size).resize(self.size, PIL.Image.Resampling.LANCZOS)
        picture.info = {}
        return picture

    def encode(self, raws: Sequence[Picture]) -> dict[str, Tensor]:
        """B pictures -> both streams; the latent is the posterior's mean."""
        return self._encode(raws, None)

    def encode_seeded(self, raws: Sequence[Picture], seeds: Sequence[int]) -> dict[str, Tensor]:
        """B pictures -> both streams; the latent is drawn from the posterior, as in training."""
        return self._encode(raws, noise_like({"latent": self.streams["latent"]}, seeds, "encode")["latent"])

    def _encode(self, raws: Sequence[Picture], noise: Tensor | None) -> dict[str, Tensor]:
        if not raws:
            return {name: torch.zeros(0, *shape) for name, shape in self.streams.items()}
        pictures = [self.check(raw) for raw in raws]
        rows = range(len(pictures))
        with torch.inference_mode():
            with self._part("autoencoder").loaded() as vae:
                latents = [self._latent(vae, pictures[k], None if noise is None else noise[k]) for k in rows]
            with self._part("vision").loaded() as vision:
                embeddings = [self._embedding(vision, picture) for picture in pictures]
        return {"clip": torch.stack(embeddings).clone(), "latent": torch.stack(latents).clone()}

    def _latent(self, vae: Any, picture: Picture, noise: Tensor | None) -> Tensor:
        """(4, H/8, W/8), float32."""
        moments = vae.quant_conv(vae.encoder(pixels_of(picture)[None].to(next(vae.parameters()))))
        mean, log_variance = moments[0].float().cpu().chunk(2)
        if noise is not None:
            mean = mean + (0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)).exp() * noise
        return mean * self._config["autoencoder"]["scaling_factor"]

    def _embedding(self, vision: Any, picture: Picture) -> Tensor:
        """(1, 512), float32."""
        pixels = standardised(clip_square(picture, self._config["vision"]["image_size"]))
        embedding: Tensor = vision(pixel_values=pixels[None].to(next(vision.parameters()))).image_embeds
        return embedding.float().cpu()

    @property
    def side(self) -> int:
        """See `modalities.SeesPixels`."""
        return min(self.size)

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `modalities.SeesPixels`; the latent is the posterior's mean."""
        side = self._config["vision"]["image_size"]
        with self._part("autoencoder").loaded() as vae:
            moments = vae.quant_conv(vae.encoder(resized(pixels, *self.size).to(next(vae.parameters()))))
        with self._part("vision").loaded() as vision:
            seen = standardised(resized(pixels, side, side))
            embedding = vision(pixel_values=seen.to(next(vision.parameters()))).image_embeds[:, None]
        mean = moments.chunk(2, dim=1)[0].to(pixels) * self._config["autoencoder"]["scaling_factor"]
        return {"clip": embedding.to(pixels), "latent": mean}

    def decode(self, streams: Mapping[str, Tensor]) -> list[Picture]:
        """{"latent": (B, 4, H/8, W/8), ...} -> B pictures."""
        x = streams["latent"].detach()
        expect_shape("the latent of a picture", x, (-1, *self.streams["latent"]))
        if not len(x):
            return []
        with torch.inference_mode(), self._part("autoencoder").loaded() as vae:
            grids = (x.float() / self._config["autoencoder"]["scaling_factor"]).to(next(vae.parameters()))
            return [picture_of(vae.decode(grid[None]).sample[0].float().cpu()) for grid in grids]

    def part(self, raw: Any, mask: Any = None) -> tuple[Picture, dict[str, Tensor]]:
        """A picture, and the known part of its streams under a mask, which is required; the embedding is not known."""
        if mask is None:
            raise ValueError("an image given in part needs a mask: a picture that is white where it is to be made")
        _, height, width = self.streams["latent"]
        known = known_cells(mask, width, height).expand(self.streams["latent"]).clone()
        return self.check(raw), {"latent": known, "clip": torch.zeros(self.streams["clip"], dtype=torch.bool)}

    def read(self, path: str | Path) -> Picture:
        """The picture in a PNG, JPEG or WebP file."""
        return self.check(read_picture(path))

    def write(self, raw: Picture, path: str | Path, info: PngInfo | None = None) -> None:
        """Write a PNG, with the text chunks of `info`."""
        raw.save(path, format="PNG", pnginfo=info)

    def config(self) -> dict[str, Any]:
        """See `__init__`."""
        return dict(self._config)

    def state(self) -> dict[str, Tensor]:
        """See `__init__`."""
        return dict(self.weights)

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec of these parts."""
        expect_keys(
            "config of a stable_diffusion modality", config, ["width", "height", "multiple", "embedding", *PARTS]
        )
        for name in ("width", "height", "multiple", "embedding"):
            check_whole(f"{name} of a stable_diffusion modality", config[name], 1, 65536)
        if config["autoencoder"] is None:
            raise ValueError("a stable_diffusion modality needs the settings of its autoencoder")
        return cls(config, state).resized(config["width"], config["height"])

    @classmethod
    def fit(cls, *raws: Any, **options: Any) -> Self:
        """Not possible: its parts are pretrained."""
        raise ValueError("a stable_diffusion modality is not fitted; it comes with a converted model")

    def _part(self, name: str) -> Offloaded[Any]:
        if name not in self.parts:
            raise ValueError(f"this model was converted without its picture encoder {name!r}; convert it again with it")
        return self.parts[name]


def clip_square(picture: Picture, side: int) -> Tensor:
    """The part of a picture that CLIP sees: short side to `side` (bicubic), the middle square; (3, side, side)."""
    short = min(picture.size)
    size = (int(side * picture.width / short), int(side * picture.height / short))
    return pixels_of(centre(picture.resize(size, PIL.Image.Resampling.BICUBIC)))


def standardised(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in [-1, 1] in the numbers that CLIP was trained on."""
    mean, std = (torch.tensor(each, device=pixels.device)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    return ((pixels + 1) / 2 - mean) / std

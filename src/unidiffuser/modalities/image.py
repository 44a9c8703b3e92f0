"""Image: a square picture <-> its pixels in [-1, 1], or the grid of an autoencoder's latents.

Pixels: x0 = p / 127.5 - 1, a grid (C, S, S). Latents: z0 = (E(x0) - mean) / std with the encoder E of an AutoEncoder
and the mean and standard deviation of each of its c channels over the user's pictures, a grid (c, S/f, S/f).

Any picture becomes an S x S one so: turned upright as its EXIF says, laid on white where it is transparent, converted
to 8-bit RGB (or grey), cut to the square in its centre, resized by Lanczos. Its pixels stay if it is so already; its
metadata (place, camera, colour profile) go.
It does not train the autoencoder, and knows colours only as sRGB numbers: colour profiles are ignored.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unidiffuser.modalities import Modality, check_whole, expect_keys, expect_shape
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**24
MAX_BYTES = 64 * 2**20
MAX_SIZE = 4096
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
SMALLEST_STD = 1e-6

Picture = PIL.Image.Image


@dataclass(frozen=True, kw_only=True)
class Latents:
    """A trained autoencoder and the mean and standard deviation (c,) of its latents.

    Pictures go through it one by one unless told otherwise, since the sums of a convolution may depend on the batch in
    their last bits.
    """

    autoencoder: AutoEncoder
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        self.autoencoder.requires_grad_(False)  # what is trained through a codec is not the codec

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, together: bool = False) -> Tensor:
        """Pixels (B, C, S, S) -> latents (B, c, S/f, S/f) of zero mean and unit variance."""
        return torch.cat([self.differentiably(part) for part in pixels.split(len(pixels) if together else 1)])

    def differentiably(self, pixels: Tensor) -> Tensor:
        """As `encode` of all pictures together, with gradients."""
        return (self.autoencoder.encode(pixels) - self.mean[:, None, None]) / self.std[:, None, None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, c, S/f, S/f) -> pixels (B, C, S, S), not clamped."""
        grids = latents * self.std[:, None, None] + self.mean[:, None, None]
        return torch.cat([self.autoencoder.decode(grid[None]) for grid in grids])


class Image(Modality[Picture]):
    """A square picture, as pixels or as the latents of an autoencoder."""

    kind: ClassVar[str] = "image"
    media_type: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"

    def __init__(self, *, size: int, channels: int = 3, latents: Latents | None = None) -> None:
        """size: side S. channels: 3 (RGB) or 1 (grey). latents: None for pixels."""
        check_whole("size of an image modality", size, 1, MAX_SIZE)
        if channels not in (1, 3):
            raise ValueError(f"an image modality got {channels!r} channels; it takes 3 (RGB) or 1 (grey)")
        self.size = size
        self.channels = channels
        self.latents = latents

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """One grid: pixels (C, S, S) or latents (c, S/f, S/f)."""
        if self.latents is None:
            return {"": (self.channels, self.size, self.size)}
        return {"": self.latents.autoencoder.config.latent_shape}

    @property
    def mode(self) -> str:
        """Pillow's name of the pictures' form: "RGB" or "L"."""
        return "RGB" if self.channels == 3 else "L"

    def check(self, raw: Any) -> Picture:
        """An S x S picture from a PIL image or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
        picture = upright(raw).convert(self.mode)
        if picture.size != (self.size, self.size):
            picture = centre(picture).resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)
        picture.info = {}
        return picture

    def encode(self, raws: Sequence[Picture]) -> dict[str, Tensor]:
        """B pictures -> {"": (B, C, S, S)} or {"": (B, c, S/f, S/f)}."""
        return {"": self._encode(raws, together=False)}

    def encode_together(self, raws: Sequence[Picture]) -> dict[str, Tensor]:
        """As `encode`, all pictures in one forward of the autoencoder."""
        return {"": self._encode(raws, together=True)}

    @property
    def side(self) -> int:
        """See `modalities.SeesPixels`."""
        return self.size

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `modalities.SeesPixels`."""
        pixels = resized(pixels, self.size, self.size)
        if self.channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        if self.latents is None:
            return {"": pixels}
        return {"": self.latents.differentiably(pixels.to(self.latents.mean)).to(pixels)}

    def _encode(self, raws: Sequence[Picture], together: bool) -> Tensor:
        if not raws:
            return torch.zeros(0, *self.streams[""])
        pixels = torch.stack([pixels_of(self.check(raw)) for raw in raws]).contiguous()
        return pixels if self.latents is None else self.latents.encode(pixels, together=together)

    def decode(self, streams: Mapping[str, Tensor]) -> list[Picture]:
        """{"": (B, ...)} -> B pictures: clamped to [-1, 1] and rounded to 8 bits."""
        x = streams[""].detach().float().cpu()
        expect_shape("the latent of an image", x, (-1, *self.streams[""]))
        pixels = x if self.latents is None or not len(x) else self.latents.decode(x)
        return [picture_of(each) for each in pixels]

    def part(self, raw: Any, mask: Any = None) -> tuple[Picture, dict[str, Tensor]]:
        """A picture, and the known part of the stream under a mask (see `mask`), which is required.

        A latent cell that is known has seen a few pixels beyond its own, so some of the hole's rim too.
        """
        if mask is None:
            raise ValueError("an image given in part needs a mask: a picture that is white where it is to be made")
        return self.check(raw), {"": self.mask(mask)}

    def mask(self, raw: Any) -> Tensor:
        """A black and white picture -> where the stream is known, bool of the stream's shape; see `known_cells`."""
        cells = self.streams[""][-1]
        return known_cells(raw, cells, cells).expand(self.streams[""]).clone()

    def read(self, path: str | Path) -> Picture:
        """The picture in a PNG, JPEG or WebP file of at most 16 megapixels that is whole and does not move."""
        return self.check(read_picture(path))

    def write(self, raw: Picture, path: str | Path, info: PngInfo | None = None) -> None:
        """Write a PNG, with the text chunks of `info`."""
        raw.save(path, format="PNG", pnginfo=info)

    def config(self) -> dict[str, Any]:
        """Size, channels, and the autoencoder's config or None."""
        autoencoder = None if self.latents is None else asdict(self.latents.autoencoder.config)
        return {"size": self.size, "channels": self.channels, "autoencoder": autoencoder}

    def state(self) -> dict[str, Tensor]:
        """Nothing for pixels; else the autoencoder's weights and the mean and std (c,) of its latents."""
        if self.latents is None:
            return {}
        weights = self.latents.autoencoder.state_dict()
        named = {f"autoencoder.{name}": tensor for name, tensor in weights.items()}
        return {**named, "mean": self.latents.mean, "std": self.latents.std}

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec of this size with these weights; nothing is allocated before all shapes are seen to agree."""
        expect_keys("config of an image modality", config, ["size", "channels", "autoencoder"])
        size, channels = config["size"], config["channels"]
        if config["autoencoder"] is None:
            expect_keys("state of an image modality", state, [])
            return cls(size=size, channels=channels)
        names = [field.name for field in fields(AutoEncoderConfig)]
        expect_keys("config of an autoencoder", config["autoencoder"], names)
        shape = AutoEncoderConfig(**config["autoencoder"])
        if (shape.size, shape.channels) != (size, channels):
            raise ValueError("the saved image modality and its autoencoder differ in size or channels; it is damaged")
        with torch.device("meta"):
            autoencoder = AutoEncoder(shape)
        wanted = {f"autoencoder.{name}": tuple(tensor.shape) for name, tensor in autoencoder.state_dict().items()}
        wanted |= {"mean": (shape.latent_channels,), "std": (shape.latent_channels,)}
        expect_keys("state of an image modality", state, wanted)
        for name in wanted:
            expect_shape(f"the saved {name} of an image modality", state[name], wanted[name])
        weights = {name: state[f"autoencoder.{name}"].float() for name in autoencoder.state_dict()}
        autoencoder.load_state_dict(weights, assign=True)
        scale = {"mean": state["mean"].float(), "std": state["std"].float()}
        return cls(size=size, channels=channels, latents=Latents(autoencoder=autoencoder.eval(), **scale))

    @classmethod
    def fit(
        cls, raws: Iterable[Any], /, *, size: int = 64, channels: int = 3, autoencoder: AutoEncoder | None = None
    ) -> Self:
        """Without an autoencoder nothing is learnt from the pictures; with a trained one, the scale of its latents.

        size, channels: of the pixels; an autoencoder brings its own and these are not used.
        """
        if autoencoder is None:
            return cls(size=size, channels=channels)
        size, channels, c = autoencoder.config.size, autoencoder.config.channels, autoencoder.config.latent_channels
        plain = Latents(autoencoder=autoencoder.eval(), mean=torch.zeros(c), std=torch.ones(c))
        codec = cls(size=size, channels=channels, latents=plain)
        count, total, square = 0, torch.zeros(c, dtype=torch.double), torch.zeros(c, dtype=torch.double)
        for raw in raws:
            latent = codec.encode([raw])[""].double()
            count += latent[0, 0].numel()
            total += latent.sum((0, 2, 3))
            square += latent.square().sum((0, 2, 3))
        if not count:
            raise ValueError("there are no pictures to learn an image modality from; give at least one")
        mean = total / count
        std = (square / count - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()
        return cls(size=size, channels=channels, latents=replace(plain, mean=mean.float(), std=std.float()))


def open_picture(data: bytes, name: str) -> Picture:
    """The fully decoded picture in the bytes of a file; its header is looked at before its pixels are unpacked.

    Raises: ValueError if the bytes are too many, not PNG, JPEG or WebP (whatever the file is called), damaged, cut
    short, of too many pixels, or an animation. `name` stands in the message.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file {name} is larger than {MAX_BYTES >> 20} MiB; give a smaller picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # we are stricter below
            picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"the picture {name} has far too many pixels; at most {MAX_PIXELS} are accepted") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"the file {name} is not a PNG, JPEG or WebP picture that can be read; convert it") from error
    except Exception as error:  # on hostile bytes Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise damaged(name) from error
    check_area(picture.size, name)
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise ValueError(f"the picture {name} is an animation; give a still picture")
    try:
        if picture.format == "PNG":  # its checksums show a flipped bit and a missing end, which unpacking does not
            PIL.Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        picture.load()
    except Exception as error:
        raise damaged(name) from error
    return picture


def damaged(name: str) -> ValueError:
    """The error of a picture that cannot be unpacked."""
    return ValueError(f"the picture {name} is damaged or incomplete; get a whole copy of it")


def check_area(size: tuple[int, int], name: str) -> None:
    """ValueError unless a picture of this (width, height) has at least one pixel and at most MAX_PIXELS."""
    width, height = size
    if not 1 <= width * height <= MAX_PIXELS:
        raise ValueError(f"the picture {name} has {width} x {height} pixels; from 1 to {MAX_PIXELS} are accepted")


def upright(raw: Any) -> Picture:
    """A PIL image or uint8 array as an upright, opaque picture of mode "RGB" or "L" with 8 bits, on white."""
    picture = from_array(raw) if isinstance(raw, np.ndarray) else raw
    if not isinstance(picture, Picture):
        raise ValueError(f"an image must be a PIL image or a uint8 array, not {type(raw).__name__}")
    check_area(picture.size, "given")
    try:
        picture.load()
        picture = PIL.ImageOps.exif_transpose(picture)
    except OSError as error:
        raise damaged("given") from error
    if picture.mode in MODES_16_BIT:
        return from_16_bits(picture)
    if picture.mode not in MODES:
        raise ValueError(f"a picture of mode {picture.mode!r} cannot be used; convert it to RGB first")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def from_array(array: np.ndarray[Any, Any]) -> Picture:
    """A uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as a picture."""
    if array.dtype != np.uint8:
        finite = array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
        trouble = "" if finite else " with NaN or infinity"
        raise ValueError(f"an image array must be uint8 (0 to 255), not {array.dtype}{trouble}; convert it first")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise ValueError(f"an image array has the shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    return PIL.Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def from_16_bits(picture: Picture) -> Picture:
    """A grey picture with values 0 to 65535 as one with 0 to 255: round(v / 257), where Pillow's own would clip."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("a picture of whole numbers must have values from 0 to 65535; scale it first")
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))


def centre(picture: Picture, width: int = 1, height: int = 1) -> Picture:
    """The largest part of a picture, around its middle, whose sides are as width to height."""
    w = min(picture.width, max(1, picture.height * width // height))
    h = min(picture.height, max(1, picture.width * height // width))
    left, top = (picture.width - w) // 2, (picture.height - h) // 2
    return picture.crop((left, top, left + w, top + h))


def known_cells(raw: Any, width: int, height: int) -> Tensor:
    """A black and white mask -> which cells of a grid (height, width) are known, bool.

    White is to be made and black is kept, as painting tools have it; grey counts as the nearer of the two. The mask is
    cut like the picture. A cell is known only if no pixel under it is to be made.
    """
    made = centre(upright(raw).convert("L"), width, height).point(lambda p: 255 * (p >= 128)).convert("F")
    return torch.from_numpy(np.asarray(made.resize((width, height), PIL.Image.Resampling.BOX)) == 0)


def pixels_of(picture: Picture) -> Tensor:
    """A picture (H, W) or (H, W, C) -> its pixels in [-1, 1], (C, H, W)."""
    array = np.array(picture)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1) / 127.5 - 1


def picture_of(pixels: Tensor) -> Picture:
    """Pixels (C, H, W), clamped to [-1, 1] and rounded to 8 bits, as a picture."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(array if array.shape[2] == 3 else array[..., 0])


def resized(pixels: Tensor, width: int, height: int) -> Tensor:
    """Pixels (B, C, H, W) cut around their middle to the shape of width x height and resized to it, with gradients."""
    *_, tall, wide = pixels.shape
    h, w = min(tall, max(1, wide * height // width)), min(wide, max(1, tall * width // height))
    top, left = (tall - h) // 2, (wide - w) // 2
    part = pixels[..., top : top + h, left : left + w]
    if (h, w) == (height, width):
        return part
    return F.interpolate(part, (height, width), mode="bicubic", antialias=True)


def read_picture(path: str | Path) -> Picture:
    """The picture in a PNG, JPEG or WebP file of at most 16 megapixels that is whole and does not move."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    return open_picture(data, str(path))

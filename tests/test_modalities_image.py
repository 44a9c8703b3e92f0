"""Image: golden conversions, hostile files, masks."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.PngImagePlugin import PngInfo

from unidiffuser.modalities.image import Image, Latents, pixels_of
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig

RGB = Image.fit([], size=8)
GREY = Image.fit([], size=8, channels=1)


def latent_codec() -> Image:
    torch.manual_seed(0)
    net = AutoEncoder(AutoEncoderConfig(size=32, width=16, blocks=1))
    return Image(size=32, latents=Latents(autoencoder=net, mean=torch.zeros(4), std=torch.ones(4)))


def flat(mode: str, colour: Any) -> PIL.Image.Image:
    return PIL.Image.new(mode, (8, 8), colour)


def palette(transparent: bool) -> PIL.Image.Image:
    picture = flat("P", 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        picture.info["transparency"] = 1
    return picture


GOLDEN: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
    "RGB": (lambda: flat("RGB", (1, 2, 3)), (1, 2, 3)),
    "L": (lambda: flat("L", 7), (7, 7, 7)),
    "1": (lambda: flat("1", 1), (255, 255, 255)),
    "LA": (lambda: flat("LA", (9, 0)), (255, 255, 255)),
    "transparent red": (lambda: flat("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
    "half red": (lambda: flat("RGBA", (255, 0, 0, 51)), (255, 204, 204)),  # 255 - 255 * 51 / 255
    "P": (lambda: palette(False), (10, 20, 30)),
    "P transparent": (lambda: palette(True), (255, 255, 255)),
    "CMYK": (lambda: flat("CMYK", (0, 255, 0, 0)), (255, 0, 255)),
    "I;16": (lambda: PIL.Image.fromarray(np.full((8, 8), 51_200, np.uint16)), (199, 199, 199)),
    "I;16 of 257": (lambda: PIL.Image.fromarray(np.full((8, 8), 300, np.uint16)), (1, 1, 1)),
    "I": (lambda: flat("I", 65535), (255, 255, 255)),
    "uint8 (H, W)": (lambda: np.full((8, 8), 5, np.uint8), (5, 5, 5)),
    "uint8 (H, W, 1)": (lambda: np.full((8, 8, 1), 5, np.uint8), (5, 5, 5)),
    "uint8 (H, W, 4)": (lambda: np.full((8, 8, 4), 0, np.uint8), (255, 255, 255)),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_conversions(case: str) -> None:
    make, expected = GOLDEN[case]
    picture = RGB.check(make())
    assert picture.mode == "RGB" and picture.getcolors() == [(64, expected)]
    luma = round(0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2])
    assert GREY.check(make()).getcolors() == [(64, luma)]


# what an EXIF orientation says of the stored pixels, as an array operation that puts them upright
UPRIGHT: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_is_obeyed_and_removed(orientation: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    PIL.Image.fromarray(stored).save(path, exif=exif, icc_profile=b"profile")
    picture = RGB.read(path)
    assert np.array_equal(np.asarray(picture), UPRIGHT[orientation](stored))
    RGB.write(picture, path)
    assert PIL.Image.open(path).info == {}


def test_the_central_square_is_taken() -> None:
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    assert np.array_equal(np.asarray(RGB.check(wide)), wide[:, 6:14])
    assert np.array_equal(np.asarray(RGB.check(wide.swapaxes(0, 1))), wide[:, 6:14].swapaxes(0, 1))
    for shape in [(1, 1), (1, 4096), (4096, 1), (7, 5)]:
        assert RGB.check(flat("RGB", (5, 6, 7)).resize(shape)).getcolors() == [(64, (5, 6, 7))]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.full((8, 8, 3), np.nan), "NaN"),
        (np.zeros((8, 8, 3)), "uint8"),
        (np.zeros((8, 8, 2), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((4097, 4096), np.uint8), "4096 x 4097"),
        (PIL.Image.new("F", (8, 8)), "mode 'F'"),
        (PIL.Image.fromarray(np.full((8, 8), -1, np.int32)), "65535"),
        ("cat.png", "str"),
        (None, "NoneType"),
    ],
)
def test_refused(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RGB.check(raw)


def saved(picture: PIL.Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header claims a size; what follows is as given."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
WHOLE = saved(NOISE, "PNG")
OTHER = PIL.Image.new("RGB", (64, 64))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a PNG"),
    "one byte": (b"\x89", "not a PNG"),
    "only a header": (WHOLE[:33], "not a PNG"),
    "a quarter": (WHOLE[: len(WHOLE) // 4], "damaged"),
    "99 percent": (WHOLE[: len(WHOLE) * 99 // 100], "damaged"),
    "the last chunk is missing": (WHOLE[:-12], "damaged"),
    "99 percent of a JPEG": (saved(NOISE, "JPEG")[:-60], "damaged"),
    "half a WebP": (saved(NOISE, "WEBP")[:500], r"not a PNG|damaged"),
    "a wrong checksum": (WHOLE[:60] + b"\x00\x01" + WHOLE[62:], "damaged"),
    "HTML": (b"<html>", "not a PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
    "TIFF": (saved(NOISE, "TIFF"), "not a PNG"),
    "GIF": (saved(NOISE, "GIF"), "not a PNG"),
    "moving PNG": (saved(NOISE, "PNG", save_all=True, append_images=[OTHER]), "animation"),
    "moving WebP": (saved(NOISE, "WEBP", save_all=True, append_images=[OTHER]), "animation"),
    "90 megapixels": (png(9500, 9500), "9500 x 9500 pixels"),
    "177 megapixels": (png(13300, 13300), "pixels"),
    "182 megapixels": (png(13500, 13500), "pixels"),
    "a line of 2 GP": (png(2**31 - 1, 1), "pixels"),
    "no pixels": (png(0, 5), r"pixels|damaged|not a PNG"),
    "a text bomb": (png(64, 64, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), "damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as error:
        warnings.simplefilter("error")
        RGB.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_good_files_whatever_their_name(tmp_path: Path) -> None:
    whole = Image.fit([], size=64)
    for name, data in {
        "a.jpg": WHOLE,
        "b.png": saved(NOISE, "WEBP", lossless=True),
        "c": WHOLE + b"PK\x03\x04",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(np.asarray(whole.read(tmp_path / name)), np.asarray(NOISE))


def test_metadata_are_written_when_asked_for(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("recipe", "größe")
    Image.fit([], size=64).write(NOISE, tmp_path / "a.png", info=info)
    assert PIL.Image.open(tmp_path / "a.png").info == {"recipe": "größe"}


def test_pixels_are_clamped_and_rounded() -> None:
    x = torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.0041, 1.0, 9.0, 1 / 127.5]).expand(1, 1, 8, 8)
    assert np.asarray(GREY.decode({"": x})[0])[0].tolist() == [0, 0, 0, 128, 128, 255, 255, 128]


def test_a_latent_cell_is_known_only_if_all_its_pixels_are() -> None:
    made = np.random.default_rng(1).random((32, 32)) < 0.02
    mask = PIL.Image.fromarray((made * 255).astype(np.uint8))
    expected = ~made.reshape(4, 8, 4, 8).any(axis=(1, 3))
    assert 0 < expected.sum() < 16
    known = latent_codec().part(NOISE, mask)[1][""]
    assert known.shape == (4, 4, 4) and np.array_equal(known[2].numpy(), expected)
    pixels = Image.fit([], size=32).mask(mask)
    assert pixels.shape == (3, 32, 32) and np.array_equal(pixels[0].numpy(), ~made)
    with pytest.raises(ValueError, match="needs a mask"):
        RGB.part(NOISE)
    with pytest.raises(ValueError, match="uint8"):
        RGB.mask(np.zeros((8, 8)))


def test_a_large_autoencoder_is_refused_before_it_is_made() -> None:
    codec = latent_codec()
    config = codec.config()
    config["autoencoder"] |= {"width": 1024, "blocks": 16, "factor": 32}
    with pytest.raises(ValueError, match="wrong entries"):
        Image.restore(config, codec.state())
    with pytest.raises(ValueError, match="shape"):
        Image.restore(codec.config(), {**codec.state(), "mean": torch.zeros(5)})
    with pytest.raises(ValueError, match="no pictures"):
        Image.fit([], autoencoder=AutoEncoder(AutoEncoderConfig(size=32, width=16, blocks=1)))


def test_pictures_encoded_together_are_those_encoded_alone() -> None:
    codec, pictures = latent_codec(), [flat("RGB", colour) for colour in ((200, 30, 40), (20, 30, 240))]
    torch.testing.assert_close(codec.encode_together(pictures)[""], codec.encode(pictures)[""], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (40, 40)])
def test_pixels_with_gradients_are_cut_and_resized_as_pictures_are(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    smooth = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, PIL.Image.Resampling.BICUBIC)
    pixels = pixels_of(smooth)[None].requires_grad_(True)
    for codec in (Image.fit([], size=32), Image.fit([], size=32, channels=1)):
        seen = codec.encode_pixels(pixels)[""]
        told = codec.encode([codec.check(smooth)])[""]
        # Lanczos and bicubic differ, and so do rounded and exact pixels and the weights of the colours in grey.
        assert float((seen - told).detach().abs().mean()) < (0.02 if codec.channels == 3 else 0.2)
        (slope,) = torch.autograd.grad(seen.sum(), pixels)
        inside = (slope != 0).flatten(1).float().mean()
        assert inside == pytest.approx(min(size) ** 2 / (size[0] * size[1]), abs=0.02)

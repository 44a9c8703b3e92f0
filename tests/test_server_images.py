"""Pictures from strangers: every way in which a file can be wrong, and what becomes of those that are right."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

import numpy as np
from PIL import Image, PngImagePlugin
from running_server import Server, bytes_url, data_url

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def ask(server: Server, url: str) -> Any:
    return server.post("/api/jobs", {"names": ["text"], "given": {"image": url}, "seed": 1, "steps": 1})


def encoded(picture: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def giant(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with next to nothing in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def with_text_bomb() -> bytes:
    whole = encoded(PICTURE)
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9))
    return whole[:33] + bomb + whole[33:]


def animated(format_: str) -> bytes:
    return encoded(PICTURE, format_, save_all=True, append_images=[Image.new("RGB", (64, 64))] * 3)


WHOLE = encoded(PICTURE)
BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\x89",
    "header only": lambda: WHOLE[:8],
    "a quarter": lambda: WHOLE[: len(WHOLE) // 4],
    "half": lambda: WHOLE[: len(WHOLE) // 2],
    "99 %": lambda: WHOLE[: len(WHOLE) * 99 // 100],
    "bad checksum": lambda: WHOLE[:40] + b"\xff" + WHOLE[41:],
    "html": lambda: b"<html><script>alert(1)</script></html>",
    "pdf": lambda: b"%PDF-1.7\n",
    "zip": lambda: b"PK\x03\x04" + b"\0" * 40,
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "tiff": lambda: encoded(PICTURE, "TIFF"),
    "gif": lambda: encoded(PICTURE, "GIF"),
    "bmp": lambda: encoded(PICTURE, "BMP"),
    "ico": lambda: encoded(PICTURE, "ICO"),
    "animated png": lambda: animated("PNG"),
    "animated webp": lambda: animated("WEBP"),
    "90 megapixels": lambda: giant(9500, 9500),
    "177 megapixels": lambda: giant(13_300, 13_300),
    "a long line": lambda: giant(2**31 - 1, 1),
    "a tall line": lambda: giant(1, 2**31 - 1),
    "no width": lambda: giant(0, 10),
    "text bomb": with_text_bomb,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_refused_in_a_sentence(server: Server, name: str) -> None:
    data = BAD[name]()
    started = time.monotonic()
    answer = ask(server, bytes_url(data))
    assert answer.status_code == 422, answer.text[:200]
    assert "/" not in answer.json()["error"]["message"].replace("image/png", "")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,###",
        "data:image/png;base64,AA A=",
        "data:image/png;base64,AAA",
        "data:image/png,AAAA",
        "data:image/png;base64",
        "AAAA",
        "http://localhost/a.png",
    ],
)
def test_a_bad_data_url_is_refused(server: Server, url: str) -> None:
    assert ask(server, url).status_code == 422


def given_back(server: Server, url: str) -> Image.Image:
    """The picture as it was kept."""
    answer = ask(server, url)
    assert answer.status_code == 202, answer.text
    value = server.over(answer.json()["id"])["result"]["samples"][0]["values"]["image"]
    return server.picture(value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_is_read_as_the_codec_reads_it(server: Server, mode: str) -> None:
    from unidiffuser.modalities.image import Image as Codec

    deep = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else PICTURE.convert(mode)
    kept = given_back(server, data_url(picture))
    assert kept.tobytes() == Codec(size=64).check(Image.open(io.BytesIO(encoded(picture)))).tobytes()


def test_jpeg_in_cmyk_and_webp_are_read(server: Server) -> None:
    assert given_back(server, data_url(PICTURE.convert("CMYK"), "JPEG")).size == (64, 64)
    lossless = given_back(server, bytes_url(encoded(PICTURE, "WEBP", lossless=True), "image/webp"))
    assert lossless.tobytes() == PICTURE.tobytes() == given_back(server, data_url(PICTURE)).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_and_stripped(server: Server, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a secret place"
    kept = given_back(server, bytes_url(encoded(PICTURE, "PNG", exif=exif)))
    upright = Image.open(io.BytesIO(encoded(PICTURE, "PNG", exif=exif)))
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(upright)
    assert turned is not None and kept.tobytes() == turned.tobytes()
    assert not kept.getexif() and "secret" not in str(kept.info)


def test_nothing_that_was_appended_or_written_into_it_is_kept(server: Server) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "secret")
    polyglot = encoded(PICTURE, "PNG", pnginfo=info) + b"PK\x03\x04<script>secret</script>"
    answer = ask(server, bytes_url(polyglot))
    name = answer.json()["id"]
    value = server.over(name)["result"]["samples"][0]["values"]["image"]
    served = server.get(value["url"])
    assert b"secret" not in served.content and served.content.endswith(b"IEND\xaeB`\x82")
    assert served.headers["content-type"] == "image/png"


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (63, 65)])
def test_any_shape_becomes_the_models(server: Server, size: tuple[int, int]) -> None:
    assert given_back(server, data_url(Image.new("RGB", size, "teal"))).size == (64, 64)


@pytest.mark.parametrize(
    "mask, status",
    [
        (Image.new("L", (64, 64), 255), 202),
        (Image.new("L", (7, 90), 255), 202),
        (Image.new("L", (64, 64), 0), 202),
        (Image.new("L", (2000, 10), 255), 422),
    ],
    ids=["full", "other size", "empty", "too large"],
)
def test_masks(server: Server, mask: Image.Image, status: int) -> None:
    job = {"names": ["image"], "given": {"image": data_url(PICTURE)}, "masks": {"image": data_url(mask)}, "steps": 1}
    assert server.post("/api/jobs", job).status_code == status


def test_a_dropped_picture_says_how_it_was_made(server: Server) -> None:
    result = server.done({"names": ["image"], "given": {"text": "a large red circle"}, "seed": 9})["samples"][0]
    own = server.get(result["values"]["image"]["url"]).content
    said = server.post("/api/recipe", {"image": bytes_url(own)}).json()
    assert said["tool"] == "unidiffuser" and said["note"] == "" and said["pixels"] == result["pixels"]
    again = {key: value for key, value in said["job"].items() if value is not None}
    assert server.done(again)["samples"][0]["pixels"] == result["pixels"]


FOREIGN = {
    "A1111": ("parameters", "a red fox\nNegative prompt: blurry\nSteps: 20, Seed: 5", "a red fox"),
    "SwarmUI": ("parameters", '{"sui_image_params": {"prompt": "a red fox"}}', "a red fox"),
    "Fooocus": ("parameters", '{"prompt": "a red fox"}', "a red fox"),
    "InvokeAI": ("invokeai_metadata", '{"positive_prompt": "a red fox"}', "a red fox"),
    "ComfyUI": ("prompt", '{"6": {"inputs": {"text": "a red fox"}}, "7": {"inputs": {"text": ""}}}', "a red fox"),
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_a_picture_of_another_tool_gives_its_prompt(server: Server, tool: str) -> None:
    key, text, prompt = FOREIGN[tool]
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    said = server.post("/api/recipe", {"image": bytes_url(encoded(PICTURE, "PNG", pnginfo=info))}).json()
    assert (said["tool"], said["prompt"]) == (tool, prompt)


@pytest.mark.parametrize(
    "text", ["{", "[" * 10_000, "x" * 900_000, '{"format": 1}', "null", '{"format": 99}'], ids=lambda t: t[:8]
)
@pytest.mark.parametrize("key", ["unidiffuser", "parameters", "prompt", "invokeai_metadata"])
def test_hostile_metadata_is_only_text(server: Server, key: str, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    answer = server.post("/api/recipe", {"image": bytes_url(encoded(PICTURE, "PNG", pnginfo=info))})
    assert answer.status_code in (200, 422)
    assert answer.json().get("job") is None

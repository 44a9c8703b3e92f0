"""Recipes: a picture says how it was made; what a stranger wrote in its place is refused."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_model import LARGE_CIRCLE, SIZE, tiny_model

from unidiffuser import Guidance
from unidiffuser.cli.outputs import write_picture
from unidiffuser.recipe import KEY, Recipe, fingerprint, given_entry, read_recipe
from unidiffuser.request import Request, made_alike, request_of

RECIPE = Recipe(
    model="scenes",
    model_sha256="0" * 64,
    library="0.0.0",
    sampled=("image",),
    given={"text": {"text": 'größer "<b>" als 🍎'}},
    seed=2**63 - 1,
    steps=25,
    solver="dpmpp_2m",
    guidance={"scale": {"image": 1.5}, "interval": [0.0, 1.0], "against": "marginal"},
    looseness={"text": 0.25},
    pixels="f" * 64,
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def with_text(path: Path, text: str, key: str = KEY) -> Path:
    info = PngInfo()
    info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_recipe_comes_back(tmp_path: Path) -> None:
    write_picture(noise(8, 8), tmp_path / "a.png", RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_other_tools_see_what_it_is(tmp_path: Path) -> None:
    write_picture(noise(8, 8), tmp_path / "a.png", RECIPE)
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        info = picture.info
    assert "trainedAlgorithmicMedia" in info["XML:com.adobe.xmp"]
    assert info["parameters"].startswith(RECIPE.given["text"]["text"]) and f"Seed: {2**63 - 1}" in info["parameters"]
    assert info["Software"] == "unidiffuser 0.0.0"


def test_without_a_recipe_nothing_is_said(tmp_path: Path) -> None:
    write_picture(noise(8, 8), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        assert picture.info == {}
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")


def test_the_fingerprint_knows_the_shape() -> None:
    picture = Image.new("RGB", (2, 8))
    assert fingerprint(picture) != fingerprint(Image.new("RGB", (8, 2))) != fingerprint(Image.new("RGB", (4, 4)))
    assert fingerprint(picture) == fingerprint(picture.copy())


@pytest.mark.parametrize(
    "request_",
    [
        Request(names=("image",), given={"text": LARGE_CIRCLE}, seed=3, steps=2, guidance=2.0),
        Request(names=("image", "text"), seed=4, solver="ancestral", guidance=Guidance(scale={"text": 1.0})),
        Request(
            names=("image",), given={"image": noise(SIZE, SIZE)}, masks={"image": Image.new("L", (9, 9), 255)}, seed=1
        ),
        Request(names=("image", "text"), given={"text": "a ___ circle"}, seed=1),
        Request(names=("image",), given={"text": LARGE_CIRCLE}, looseness={"text": 0.5}, seed=3),
    ],
)
def test_the_recipe_of_a_sample_makes_it_again(request_: Request, tmp_path: Path) -> None:
    model = tiny_model()
    (sample,) = request_.draw(model)
    write_picture(sample["image"], tmp_path / "a.png", request_.recipe(model, sample, "0.0.0"))
    recipe = read_recipe(tmp_path / "a.png")
    again = request_of(recipe)
    (remade,) = again.draw(model)
    assert fingerprint(remade["image"]) == recipe.pixels == fingerprint(sample["image"])
    assert made_alike(recipe, again.recipe(model, remade, "0.0.1")) is True
    assert made_alike(recipe, replace(recipe, seed=99)) is None


def test_a_large_given_picture_is_kept_as_its_hash() -> None:
    entry = given_entry("image", noise(256, 256))
    assert set(entry) == {"sha256"}
    recipe = replace(RECIPE, given={"image": entry})
    with pytest.raises(ValueError, match="keeps only the hash"):
        request_of(recipe)
    assert request_of(recipe, {"image": "mine"}).given == {"image": "mine"}


def test_recipes_stay_below_their_cap(tmp_path: Path) -> None:
    entry = given_entry("image", noise(100, 100))
    assert "png" in entry
    write_picture(noise(8, 8), tmp_path / "a.png", replace(RECIPE, given=dict.fromkeys("abcd", entry)))
    assert all(set(entry) == {"sha256"} for entry in read_recipe(tmp_path / "a.png").given.values())


def changed(**values: Any) -> str:
    fields = {"format": 1, **vars(RECIPE), **values}
    return json.dumps({name: value for name, value in fields.items() if value != "absent"})


HOSTILE = {
    "nothing": "",
    "no JSON": "{",
    "no object": "[]",
    "deep": "[" * 60_000,
    "a long number": '{"format": 1, "seed": ' + "9" * 5000 + "}",
    "future": changed(format=2),
    "field missing": changed(seed="absent"),
    "field unknown": changed(path="/etc/passwd"),
    "negative seed": changed(seed=-1),
    "huge seed": changed(seed=2**63),
    "boolean seed": changed(seed=True),
    "fractional seed": changed(seed=1.5),
    "nothing sampled": changed(sampled=[]),
    "sampled is a word": changed(sampled="image"),
    "given is a path": changed(given={"image": {"path": "/etc/passwd"}}),
    "given is an address": changed(given={"image": {"url": "http://169.254.169.254/"}}),
    "given is a list": changed(given=[]),
    "text with more": changed(given={"text": {"text": "a", "png": ""}}),
    "not base64": changed(given={"image": {"sha256": "0" * 64, "png": "%%%"}}),
    "numbers with NaN": changed(given={"vector": {"numbers": [float("nan")]}}),
    "hash of capitals": changed(model_sha256="F" * 64),
    "line break in a name": changed(model="a\nb"),
    "escape in a name": changed(model="\x1b[31m"),
    "endless text": changed(given={"text": {"text": "a" * 30_000}}),
    "too long": changed(model="a") + " " * 70_000,
    "guidance of text": changed(guidance={"scale": "7", "interval": [0, 1], "against": "marginal"}),
    "guidance of infinity": changed(guidance={"scale": float("inf"), "interval": [0, 1], "against": "marginal"}),
    "guidance with more": changed(guidance={"scale": 1, "interval": [0, 1], "against": "marginal", "x": 1}),
    "loose by text": changed(looseness={"text": "0.5"}),
}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_recipe_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_recipe(with_text(tmp_path / "a.png", HOSTILE[text]))
    assert "a.png" in str(caught.value) and len(str(caught.value)) < 400


def test_an_embedded_picture_must_be_the_one_that_is_named(tmp_path: Path) -> None:
    entry = given_entry("image", noise(8, 8))
    for bad in (entry | {"sha256": "0" * 64}, entry | {"png": "aGVsbG8="}):
        recipe = read_recipe(with_text(tmp_path / "a.png", changed(given={"image": bad})))
        with pytest.raises(ValueError):
            request_of(recipe)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:60], lambda data: b"<html>" + data])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise(8, 8).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(damage(buffer.getvalue()))
    with pytest.raises(ValueError, match=r"a\.png"):
        read_recipe(tmp_path / "a.png")

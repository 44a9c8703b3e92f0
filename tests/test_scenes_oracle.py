"""The oracle against the truth it cannot see, and against pictures that are no scenes."""

import numpy as np
import pytest
from PIL import Image

from unidiffuser.datasets.scenes import Scenes, facts, oracle, render
from unidiffuser.datasets.scenes.facts import Object, Scene
from unidiffuser.datasets.scenes.render import Bytes, Placed

SQUARE, STAR = Object("medium", "red", "square"), Object("medium", "teal", "star")


@pytest.mark.parametrize("split", facts.SPLITS)
def test_clean_pictures_are_read_to_the_pixel(split: str) -> None:
    scenes = Scenes(seed=21, split=split, max_objects=3)
    pixels, _ = scenes.batch(range(140))
    readings = [oracle.read(picture) for picture in pixels]
    assert [reading.scene for reading in readings] == [scenes.facts(i) for i in range(140)]
    assert np.median([reading.misfit for reading in readings]) == 0.0


@pytest.mark.parametrize(("sigma", "least"), [(0.05, 1.0), (0.1, 0.98)])
def test_faint_noise_does_not_matter(sigma: float, least: float) -> None:
    scenes, rng = Scenes(seed=22), np.random.default_rng(0)
    pixels, _ = scenes.batch(range(100))
    noisy = (pixels + rng.normal(0.5, 255 * sigma, pixels.shape)).clip(0, 255).astype(np.uint8)
    right = [scene == scenes.facts(i) for i, scene in enumerate(oracle.read_all(noisy))]
    assert np.mean(right) >= least


def test_half_the_resolution_is_enough() -> None:
    scenes = Scenes(seed=23)
    for i in range(60):
        image = scenes[i]["image"]
        assert isinstance(image, Image.Image)
        assert oracle.read(image.resize((32, 32), Image.Resampling.BOX).resize((64, 64))).scene == scenes.facts(i)


def _bitten() -> Bytes:
    picture = render.paint((Placed(SQUARE, 128, 128, 37),), "white").copy()
    picture[32:, 32:] = picture[0, 0]
    return picture


def _two_colours() -> Bytes:
    picture = render.paint((Placed(SQUARE, 128, 128, 37),), "white").copy()
    picture[:32] = render.paint((Placed(Object("medium", "blue", "square"), 128, 128, 37),), "white")[:32]
    return picture


def _speck() -> Bytes:
    picture = render.paint((Placed(SQUARE, 128, 128, 37),), "white").copy()
    picture[4:9, 4:9] = 60
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        render.paint((), "white"),
        np.full((64, 64, 3), (240, 150, 190), np.uint8),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
        render.paint((Placed(SQUARE, 60, 60, 37), Placed(SQUARE, 60, 180, 37)), "sky"),
        render.paint((Placed(SQUARE, 60, 60, 37), Placed(STAR, 190, 190, 37)), "sky"),
        render.paint((Placed(SQUARE, 100, 128, 37), Placed(STAR, 150, 128, 37)), "sky"),
        _bitten(),
        _two_colours(),
        _speck(),
    ],
    ids=["nothing", "pink", "noise", "twins", "diagonal", "overlap", "bitten", "two colours", "speck"],
)
def test_what_is_no_scene_is_refused(picture: Bytes) -> None:
    reading = oracle.read(picture)
    assert reading.scene is None
    assert reading.fault


def test_three_in_a_row_with_a_diagonal_step_are_refused() -> None:
    third = Placed(Object("small", "black", "heart"), 190, 190, 25)
    row = (Placed(Object("small", "red", "square"), 40, 100, 25), Placed(Object("small", "teal", "star"), 100, 100, 25))
    assert oracle.read(render.paint((*row, third), "mint")).scene is None
    assert oracle.read(render.paint(row, "mint")).scene == Scene(tuple(p.thing for p in row), "left of", "mint")


def test_captions_are_read_or_refused() -> None:
    assert oracle.read_caption("a medium red square") == Scene((SQUARE,))
    assert oracle.read_caption("a medium red squid") is None


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3)), Image.new("RGB", (65, 64))])
def test_other_sizes_and_types_are_an_error(wrong: Bytes | Image.Image) -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        oracle.read(wrong)

"""Marks of synthetic pictures, on and off."""

import io
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_model import saved_model

from unidiffuser.cli import main
from unidiffuser.marking import CHUNK, SOURCE_TYPE, check_words, watermarked
from unidiffuser.recipe import KEY
from unidiffuser.server.images import as_format


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    saved_model(tmp_path / "tiny")
    return tmp_path


def made(out: str, *flags: str) -> PIL.Image.Image:
    command = ["sample", "image", "--model", "tiny", "--seed", "1", "--steps", "1", "-q", "--out", out, *flags]
    assert main(command) == 0
    picture = PIL.Image.open(f"{out}/0000.png")
    picture.load()
    return picture


def digital_source_type(picture: PIL.Image.Image) -> str:
    """What the property's readers find, by the XML and not by its letters."""
    root = xml.etree.ElementTree.fromstring(picture.info[CHUNK].partition("?>")[2].rpartition("<?")[0])
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    [found] = [node.attrib[name] for node in root.iter() if name in node.attrib]
    return found


def test_the_mark_for_machines_is_on_with_and_without_a_recipe_and_can_be_off(place: Path) -> None:
    with_recipe, alone, off = made("a"), made("b", "--mark-only"), made("c", "--no-metadata")
    assert KEY in with_recipe.info and digital_source_type(with_recipe) == SOURCE_TYPE
    assert set(alone.info) == {CHUNK, "xmp"} and digital_source_type(alone) == SOURCE_TYPE
    assert off.info == {}
    assert len({picture.tobytes() for picture in (with_recipe, alone, off)}) == 1


@pytest.mark.parametrize("format_", ["jpeg", "webp"])
def test_the_mark_for_machines_stays_in_the_formats_of_the_server(format_: str, place: Path) -> None:
    drawn = made("a")
    with PIL.Image.open(io.BytesIO(as_format(Path("a/0000.png").read_bytes(), format_, 90))) as picture:
        assert picture.format == format_.upper() and picture.size == drawn.size
        assert SOURCE_TYPE.encode() in picture.info["xmp"]


def test_the_visible_mark_is_off_unless_asked_for(place: Path) -> None:
    plain, drawn = np.asarray(made("a")).astype(int), np.asarray(made("b", "--watermark", "AI")).astype(int)
    changed = np.abs(plain - drawn).any(-1)
    assert 10 < changed.sum() < 0.1 * changed.size
    rows, columns = changed.nonzero()
    assert rows.min() > 32 and columns.min() > 32  # only the lower right


def test_a_watermarked_picture_is_made_again_from_its_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("a", "--watermark", "AI")
    assert main(["sample", "image", "--like", "a/0000.png", "--model", "tiny", "--out", "b", "--json"]) == 0
    assert '"reproduced": true' in capsys.readouterr().out
    assert (np.asarray(PIL.Image.open("b/0000.png")) == np.asarray(made("c"))).all()


@pytest.mark.parametrize("size", [(512, 512), (64, 256), (16, 16)])
def test_words_fit_into_any_picture_and_are_seen_on_any_ground(size: tuple[int, int]) -> None:
    for ground in ("white", "black", "grey"):
        picture = PIL.Image.new("RGB", size, ground)
        drawn = watermarked(picture, "made by a model, " * 4)
        changed = (np.asarray(drawn) != np.asarray(picture)).any(-1)
        assert drawn.size == size and changed.any()
        assert not changed[: size[1] // 3].any()
    assert watermarked(picture, "") is picture


@pytest.mark.parametrize("words", ["", "  ", "a\nb", "x" * 81])
def test_impossible_words(words: str) -> None:
    with pytest.raises(ValueError, match="a watermark takes 1 to 80 printable characters"):
        check_words(words)

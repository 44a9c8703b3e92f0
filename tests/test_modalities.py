"""What every codec must hold, and what the shared parts promise; the example of docs/modalities.md is one of them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from unidiffuser import modalities
from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig

DOCS = Path(__file__).parents[1] / "docs" / "modalities.md"
CAPTIONS = ["a large red circle above a small blue square", "a small green star, on white", "a red square"]


@pytest.fixture
def bearing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/modalities.md tells a reader to write, in the folder of modalities."""
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (tmp_path / "bearing.py").write_text(block)
    monkeypatch.setattr(modalities, "__path__", [*modalities.__path__, str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "unidiffuser.modalities.bearing", raising=False)


def pictures(count: int, size: int = 32) -> list[PIL.Image.Image]:
    tiles = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [PIL.Image.fromarray(tile).resize((size, size)) for tile in tiles]


def chirps(count: int) -> list[np.ndarray]:
    t = np.arange(4096) / 8000
    return [(0.5 * np.sin(2 * np.pi * (200 + 100 * k) * t * (1 + t))).astype(np.float32) for k in range(count)]


def vectors(count: int) -> list[np.ndarray]:
    noise = np.random.default_rng(0).normal(size=(count, 3))
    return list((noise * [1, 100, 0] + [0, -5, 7]).astype(np.float32))


def autoencoder() -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(AutoEncoderConfig(size=32, width=16, blocks=1))


# kind, raw values, options of fit, and whether decode(encode(x)) is x itself
CASES: dict[str, tuple[str, Any, Any, bool]] = {
    "pixels": ("image", lambda: pictures(4), lambda: {"size": 32}, True),
    "grey pixels": ("image", lambda: [p.convert("L") for p in pictures(4)], lambda: {"size": 32, "channels": 1}, True),
    "latents": ("image", lambda: pictures(4), lambda: {"autoencoder": autoencoder()}, False),
    "words": ("text", lambda: CAPTIONS, dict, True),
    "bytes": ("text", lambda: CAPTIONS, lambda: {"max_words": 5}, True),
    "sound": ("sound", lambda: chirps(3), lambda: {"frames": 32}, False),
    "vector": ("vector", lambda: vectors(50), dict, False),
    "bearing": ("bearing", lambda: [np.array([d], np.float32) for d in (0.0, 1.0, 90.0, 359.0)], dict, False),
}


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    if isinstance(a, str):
        return bool(a == b)
    return bool(np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance))


@pytest.mark.parametrize("case", CASES)
def test_every_modality(case: str, bearing: None, tmp_path: Path) -> None:
    kind, make, options, exact = CASES[case]
    raws = make()
    codec = modalities.find(kind).fit(raws, **options())
    assert codec.kind == kind
    assert codec.media_type in ("image", "text", "sound", "vector")

    streams = codec.encode(raws)
    assert {name: tuple(x.shape[1:]) for name, x in streams.items()} == codec.streams
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in streams.values())
    assert all(codec.encode([])[name].shape == (0, *shape) for name, shape in codec.streams.items())
    alone = codec.encode(raws[1:2])
    assert all(torch.equal(alone[name], x[1:2]) for name, x in streams.items()), "a value's latent depends on the batch"

    back = codec.decode(streams)
    assert len(back) == len(raws)
    if exact:
        assert all(same(a, b) for a, b in zip(raws, back, strict=True))
    again = codec.decode({name: x[1:2] for name, x in streams.items()})
    assert same(again[0], back[1]), "a decoded value depends on the batch"
    with pytest.raises(ValueError, match="finite"):
        codec.decode({name: x * torch.nan for name, x in streams.items()})

    saved = json.loads(json.dumps(codec.config(), allow_nan=False))
    restored = modalities.find(kind).restore(saved, {name: x.clone() for name, x in codec.state().items()})
    assert restored.streams == codec.streams
    assert all(torch.equal(x, restored.encode(raws)[name]) for name, x in streams.items())
    with pytest.raises(ValueError, match="bogus"):
        modalities.find(kind).restore({**saved, "bogus": 1}, codec.state())
    with pytest.raises(ValueError, match="bogus"):
        modalities.find(kind).restore(saved, {**codec.state(), "bogus": torch.zeros(1)})

    canonical = codec.check(raws[0])
    assert same(codec.check(canonical), canonical)
    path = tmp_path / f"raw{codec.suffix}"
    codec.write(canonical, path)
    assert same(codec.read(path), canonical, tolerance=1e-4)
    with pytest.raises(FileNotFoundError):
        codec.read(tmp_path / "absent")


@pytest.mark.parametrize("case", ["latents", "words", "sound", "vector"])
def test_streams_have_mean_zero_and_variance_one(case: str) -> None:
    kind, make, options, _ = CASES[case]
    raws = make()
    x = modalities.find(kind).fit(raws, **options()).encode(raws)[""].double()
    x = x[..., :2] if case == "vector" else x  # the third number never varies
    assert abs(x.mean()) < 0.01
    assert abs(x.var(0 if case == "vector" else None, correction=0).mean() - 1) < 0.01


def test_the_folder_is_the_registry() -> None:
    files = {path.stem for path in Path(modalities.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(modalities.kinds()) == files >= {"image", "text", "sound", "vector"}
    for kind in ["smell", "os", "__init__", "../image", "image.Image", ""]:
        with pytest.raises(ValueError, match="there is no modality"):
            modalities.find(kind)


def test_only_some_can_be_given_in_part() -> None:
    codec = modalities.find("vector").fit([[1, 2]])
    with pytest.raises(ValueError, match="in part"):
        codec.part([1, 2])

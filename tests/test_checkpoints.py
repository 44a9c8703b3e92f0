"""The native format: what is written comes back, and what a stranger may have put there is refused in one sentence."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import saved_model, tiny_model

from unidiffuser import ModelError, UniDiffuser
from unidiffuser.checkpoints import native


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model")


def reseal(folder: Path) -> None:
    """Make the checksums true again, so that what lies behind them is met."""
    sums = {name: native.sha256(folder / name) for name in (native.CONFIG, native.WEIGHTS)}
    (folder / native.CHECKSUMS).write_text(json.dumps(sums))


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / native.CONFIG).read_text())
    change(config)
    (folder / native.CONFIG).write_text(json.dumps(config))
    reseal(folder)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / native.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / native.WEIGHTS)
    reseal(folder)


def test_a_model_comes_back_exactly(folder: Path) -> None:
    before, after = tiny_model(), UniDiffuser.from_pretrained(folder)
    assert all(torch.equal(x, after.network.state_dict()[name]) for name, x in before.network.state_dict().items())
    assert (after.settings, after.process, after.prediction) == (before.settings, before.process, before.prediction)
    assert after.modalities["text"].config() == before.modalities["text"].config()
    assert after.sample("text", seed=3)[0].values == before.sample("text", seed=3)[0].values
    assert len(after.digest) == 64


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_stored_and_float32_is_loaded(tmp_path: Path, stored: native.Stored) -> None:
    tiny_model().save(tmp_path / "half", stored=stored)
    parts = UniDiffuser.from_pretrained(tmp_path / "half")
    for name, x in parts.network.state_dict().items():
        assert torch.equal(x, tiny_model().network.state_dict()[name].to(getattr(torch, stored)).float())


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    digests = [native.read(saved_model(tmp_path / name, seed)).digest for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert digests[0] == digests[1] != digests[2]


def test_nothing_is_overwritten_unless_forced(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--force"):
        tiny_model(1).save(folder)
    tiny_model(1).save(folder, force=True)
    assert torch.equal(UniDiffuser.from_pretrained(folder).network.norm.weight, tiny_model(1).network.norm.weight)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(ValueError, match="another place"):
        tiny_model().save(tmp_path / "photos", force=True)


def test_a_write_that_fails_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = native.read(folder).digest

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        tiny_model(1).save(folder, force=True)
    assert native.read(folder).digest == digest
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = tiny_model()
    model.network.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"norm\.weight"):
        model.save(tmp_path / "model")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, share: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def cut_and_sealed(folder: Path) -> None:
    cut(native.WEIGHTS, 0.5)(folder)
    reseal(folder)


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / native.WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / native.WEIGHTS).write_bytes(data)


def config(**values: Any) -> Callable[[Path], object]:
    return lambda folder: change_config(folder, lambda config: config.update(values))


def network(**values: Any) -> Callable[[Path], object]:
    return lambda folder: change_config(folder, lambda config: config["network"].update(values))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: change_weights(folder, change)


def header(text: bytes, length: int | None = None) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / native.WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
        reseal(folder)

    return damage


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / native.CONFIG).unlink(), "config.json is missing"),
    "no weights": (lambda folder: (folder / native.WEIGHTS).unlink(), "model.safetensors is missing"),
    "no checksums": (lambda folder: (folder / native.CHECKSUMS).unlink(), "checksums.json is missing"),
    "empty weights": (write(native.WEIGHTS, b""), "unfinished download"),
    "empty config": (write(native.CONFIG, b""), "unfinished download"),
    "cut weights": (cut(native.WEIGHTS, 0.9), "sha256"),
    "cut weights, sealed": (cut_and_sealed, "not a whole safetensors"),
    "cut config": (cut(native.CONFIG, 0.5), "not valid JSON"),
    "web page": (write(native.WEIGHTS, b"<!DOCTYPE html><html>"), "web page"),
    "lfs pointer": (write(native.WEIGHTS, LFS), "git lfs pull"),
    "pickle": (write(native.WEIGHTS, b"\x80\x04cos\nsystem\n"), "pickle"),
    "zipped pickle": (write(native.WEIGHTS, b"PK\x03\x04archive/data.pkl"), "pickle"),
    "flipped bit": (flip_a_bit, "sha256"),
    "config changed": (lambda folder: (folder / native.CONFIG).write_text("{}"), "not a unidiffuser config"),
    "diffusers": (write("model_index.json", b"{}"), "diffusers"),
    "checksums of other files": (write(native.CHECKSUMS, b'{"/etc/passwd": ""}'), "must hold the sha256"),
    "future": (config(format=2), "update unidiffuser"),
    "boolean format": (config(format=True), "format is True"),
    "unknown key": (config(auto_map="x.py"), "unknown ['auto_map']"),
    "wrong type": (config(modalities=[]), "'modalities' must be of type dict"),
    "no modality": (config(modalities={}), "names no modality"),
    "path as kind": (config(modalities={"image": {"kind": "../x", "config": {}}}), "no modality kind"),
    "unknown process": (config(process="__class__"), "process must be one of"),
    "unknown prediction": (config(prediction="y"), "prediction must be"),
    "unknown setting": (config(settings={"stepz": 3}), "stepz"),
    "guidance from JSON": (config(settings={"guidance": {"scale": -3}}), "guidance scale"),
    "unknown network": (network(kind="os"), "no network 'os'"),
    "unknown network setting": (network(depht=2), "depht"),
    "a million layers": (network(depth=1_000_000), "depth"),
    "wrong depth": (network(depth=4), "missing: network.in_blocks.1"),
    "absurd width": (network(dim=2**40), "does not describe a model"),
    "text width": (network(streams={"image": [3, 64, 64], "text": [20, 9]}), "of another shape"),
    "nan": (weights(lambda x: x["network.norm.weight"].fill_(torch.nan)), "NaN"),
    "missing tensor": (weights(lambda x: x.pop("network.norm.bias")), "missing: network.norm.bias"),
    "extra tensor": (weights(lambda x: x.update(extra=torch.ones(1))), "unknown: extra"),
    "transposed": (weights(lambda x: x.update({"network.norm.bias": torch.ones(1, 32)})), "of another shape"),
    "integers": (weights(lambda x: x.update({"network.norm.bias": torch.ones(32).long()})), "must hold tensors of"),
    "text codes": (weights(lambda x: x.pop("modalities.text.codes")), "codes"),
    "huge header": (header(b"{}", 2**62), "not a whole safetensors"),
    "duplicate key": (header(b'{"a":{},"a":{}}'), "twice"),
    "header is a list": (header(b"[]"), "damaged safetensors header"),
    "deep header": (header(b"[" * 100_000), "damaged safetensors header"),
    "terabytes": (header(b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,8]}}'), "at most"),
    "config with NaN": (write(native.CONFIG, b'{"format": NaN}'), "not valid JSON"),
    "config with two formats": (write(native.CONFIG, b'{"format": 1, "format": 1}'), "twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_sentence(folder: Path, fault: str) -> None:
    damage, words = FAULTS[fault]
    damage(folder)
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        UniDiffuser.from_pretrained(folder)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 600
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "pytorch_model.bin", "model.pkl"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "pickled").mkdir()
    file = tmp_path / "pickled" / name
    file.write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "sentinel").encode() + b"'\ntR.")
    for place in (file, file.parent):
        with pytest.raises(ModelError, match="convert it to safetensors"):
            UniDiffuser.from_pretrained(place)
    assert not (tmp_path / "sentinel").exists()


def test_a_name_that_is_not_in_the_box_lists_the_box(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="in the box"):
        UniDiffuser.from_pretrained("no_such_model")
    with pytest.raises(ModelError, match="no model folder"):
        UniDiffuser.from_pretrained(tmp_path / "no_such_folder")

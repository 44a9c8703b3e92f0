"""Released models that are damaged, hostile or something else: one sentence that names the file and the cure."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_model import Formats, save_diffusers, save_original
from safetensors.torch import load_file, save_file

from unidiffuser.checkpoints import ModelError, convert, native
from unidiffuser.cli import main

RAN = []
HTML, POINTER = b"<!DOCTYPE html><title>404</title>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
STEM = "diffusion_pytorch_model"


class Hostile:
    """A pickle that notes that it ran."""

    def __reduce__(self) -> Any:
        return (RAN.append, (1,))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def holding(data: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data) and None


def hostile(file: Path) -> None:
    torch.save({"pos_embed": Hostile()}, file)


def nested_in_a_list(file: Path) -> None:
    torch.save([torch.zeros(1)], file)


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A table with something changed, in either container."""

    def spoil(file: Path) -> None:
        tensors = file.suffix == ".safetensors"
        table = load_file(file) if tensors else torch.load(file, weights_only=True)
        change(table)
        (save_file if tensors else torch.save)(table, file)

    return spoil


def renamed(table: dict[str, torch.Tensor]) -> None:
    name = next(name for name in table if "mid" in name or "h.0" in name or "layers.0" in name)
    table[f"{name}.other"] = table.pop(name)


def reshaped(table: dict[str, torch.Tensor]) -> None:
    name = next(name for name, x in table.items() if x.ndim > 1 and ("mid" in name or "h.0" in name or "fc1" in name))
    table[name] = torch.zeros(table[name].shape[0], table[name].shape[1] + 1, *table[name].shape[2:])


def not_finite(table: dict[str, torch.Tensor]) -> None:
    next(x for name, x in table.items() if x.is_floating_point() and x.ndim > 1).view(-1)[0] = torch.nan


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "half of it": (cut, "damaged or was not downloaded whole|is not a whole safetensors file"),
    "an empty file": (lambda file: file.write_bytes(b"") and None, "is empty, probably an unfinished download"),
    "a web page": (holding(HTML), "is a web page, probably an error page saved by a download"),
    "a Git-LFS pointer": (holding(POINTER), "is a Git-LFS pointer and not the file itself; run `git lfs pull`, or"),
    "noise": (holding(bytes(range(1, 200)) * 9), "is not a file of torch|is not a whole safetensors file"),
    "no file": (lambda file: file.unlink(), "there is no file|holds no weights|must hold one of"),
    "another name inside": (changed(renamed), "missing|unknown|not those of|does not have"),
    "another shape inside": (changed(reshaped), "of another shape|not those of|differ in shape"),
    "NaN": (changed(not_finite), r"(are|is) not finite|NaN"),
}
PICKLE_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a hostile pickle": (hostile, "holds more than tensors, which could run code, so it was not read"),
    "a list": (nested_in_a_list, "is not a flat table of tensors; give the file of the weights alone"),
}
FILES = {
    "original": ["uvit_v1.pth", "caption_decoder.pth", "autoencoder_kl.pth"],
    "new": [f"unet/{STEM}.safetensors", f"text_decoder/{STEM}.bin", "text_encoder/model.safetensors"],
}
CASES = [
    (name, file, fault)
    for name, files in FILES.items()
    for file in files
    for fault in (*FAULTS, *(() if file.endswith("safetensors") else PICKLE_FAULTS))
]


def fail(folder: Path, place: Path) -> str:
    """The one sentence in which a conversion fails; nothing is left behind and nothing ran."""
    with pytest.raises(ValueError) as caught:
        parts, _ = convert.read(folder)
        convert.write(place, parts)
    assert not place.exists() and not list(place.parent.glob(".*"))
    assert RAN == []
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("name, file, fault", CASES)
def test_a_bad_file(formats: Formats, tmp_path: Path, name: str, file: str, fault: str) -> None:
    folder = shutil.copytree(formats.theirs[name], tmp_path / "model")
    spoil, complaint = (FAULTS | PICKLE_FAULTS)[fault]
    spoil(folder / file)
    message = fail(folder, tmp_path / "ours")
    assert re.search(complaint, message), message
    named = (folder / file).name in message or str((folder / file).parent) in message
    assert named or "the weights" in message or "the network" in message, message


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
         "is a 'StableDiffusionPipeline', not a UniDiffuserPipeline; give another folder"),
        (lambda f: (f / "model_index.json").write_bytes(HTML), "model_index.json is a web page"),
        (lambda f: (f / "model_index.json").write_text('{"a": 1, "a": 2}'), "model_index.json is not valid JSON"),
        (lambda f: shutil.rmtree(f / "vae"), "is not a whole pipeline: vae missing"),
        (lambda f: (shutil.rmtree(f / "vae"), shutil.copytree(f / "text_encoder", f / "vae")),
         "vae does not describe a Stable Diffusion autoencoder"),
        (lambda f: (shutil.rmtree(f / "unet"), shutil.copytree(f / "vae", f / "unet")),
         "unet/config.json does not describe a UniDiffuser"),
        (lambda f: (f / "unet" / "config.json").unlink(), "unet has no config.json"),
        (lambda f: setting(f / "unet", num_layers=6), "the weights of the network are not those of a UniDiffuser"),
        (lambda f: setting(f / "unet", num_layers=10**9), r"num_layers is 1000000000; it must be a whole number"),
        (lambda f: setting(f / "unet", num_layers=10**6), "is said to have 1000000 layers, and has"),
        (lambda f: setting(f / "unet", pre_layer_norm=True), "of the released kind: it differs in pre_layer_norm"),
        (lambda f: setting(f / "unet", num_attention_heads="24"), "unet/config.json does not describe a UniDiffuser"),
        (lambda f: setting(f / "text_decoder", n_layer=7), "the weights of the GPT-2 caption decoder are not those"),
        (lambda f: setting(f / "text_decoder", n_embd=None), "text_decoder|caption decoder"),
        (lambda f: setting(f / "text_decoder", n_head=5), "the settings of the GPT-2 caption decoder do not"),
        (lambda f: setting(f / "vae", norm_num_groups=7), "the settings of the Stable Diffusion autoencoder"),
        (lambda f: setting(f / "vae", latent_channels=8), "not belong together|not those of its settings"),
        (lambda f: setting(f / "image_encoder", hidden_act="os.system"), "the settings of the CLIP picture encoder"),
        (lambda f: (f / "clip_tokenizer" / "tokenizer.json").write_text("{}"), "does not hold a tokenizer"),
        (lambda f: setting(f / "text_tokenizer", "tokenizer_config.json", eos_token=None),
         "text_tokenizer does not say which token ends a caption"),
    ],
)  # fmt: skip
def test_a_wrong_component(formats: Formats, tmp_path: Path, spoil: Callable[[Path], Any], complaint: str) -> None:
    folder = shutil.copytree(formats.theirs["new"], tmp_path / "model")
    spoil(folder)
    message = fail(folder, tmp_path / "ours")
    assert re.search(complaint, message), message


def setting(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Change what a component says of itself."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_both_versions_of_the_network_at_once(formats: Formats, tmp_path: Path) -> None:
    folder = save_original(tmp_path / "model", formats.source)
    shutil.copy(folder / "uvit_v1.pth", folder / "uvit_v0.pth")
    assert "must hold one of uvit_v1.pth and uvit_v0.pth, and it holds 2" in fail(folder, tmp_path / "ours")


@pytest.mark.parametrize("source", ["nowhere", "thu-ml/unidiffuser-of-nobody", "empty"])
def test_no_model_at_all(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    message = fail(Path(source), tmp_path / "ours")
    wanted = (
        "allow it to be fetched (--download, download=True), or give a folder"
        if "/" in source
        else "holds no model that is known"
    )
    assert source in message and wanted in message


@pytest.mark.parametrize("name", ["new", "original"])
def test_folders_of_others_are_not_loaded_but_named_with_the_cure(formats: Formats, name: str) -> None:
    with pytest.raises(ModelError, match="unidiffuser convert"):
        native.read(formats.theirs[name])


def test_a_converted_model_that_was_changed(formats: Formats, tmp_path: Path) -> None:
    folder = shutil.copytree(formats.ours["new"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["modalities"]["text"]["config"]["decoder"]["n_layer"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="damaged: its sha256 is not the one"):
        native.read(folder)
    sums = {name: native.sha256(folder / name) for name in (native.CONFIG, native.WEIGHTS)}
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ModelError, match="the weights of the GPT-2 caption decoder are not those of its settings"):
        native.read(folder)


def test_convert_fails_in_one_sentence_on_the_command_line(
    formats: Formats, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_diffusers(tmp_path / "model", formats.source)
    (folder / "unet" / f"{STEM}.safetensors").write_bytes(POINTER)
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("unidiffuser: ") and "git lfs pull" in error[-1] and len(error) == 2


def test_missing_libraries_are_named_with_the_cure(formats: Formats, tmp_path: Path) -> None:
    """In a process of its own, where the two libraries cannot be imported."""
    program = f"""
        import sys
        sys.modules["diffusers"] = sys.modules["transformers"] = None
        from unidiffuser.cli import main
        sys.exit(main(["sample", "image", "--model", {str(formats.ours["new"])!r}, "--out", "out"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "which is not installed; run: pip install 'unidiffuser[released]'" in done.stderr

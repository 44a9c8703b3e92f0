"""Bad input of every kind is refused in one sentence, and the next good call is as good as ever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import LARGE_CIRCLE, SIZE, saved_model, tiny_model

from unidiffuser import Guidance, UniDiffuser
from unidiffuser.cli import main
from unidiffuser.modalities.vector import Vector
from unidiffuser.networks.mlp import MLP, MLPConfig

NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> UniDiffuser:
    return tiny_model()


def picture(width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.new("RGB", (width, height), "red")


CALLS: dict[str, tuple[Callable[[UniDiffuser], object], str]] = {
    "nothing to sample": (lambda m: m.sample(), "nothing to sample"),
    "unknown": (lambda m: m.sample("imge"), "'imge'; it has image, text"),
    "unknown given": (lambda m: m.sample("image", txt="a"), "'txt'; it has image, text"),
    "twice": (lambda m: m.sample("image", "image"), "named twice"),
    "sampled and given": (lambda m: m.sample("image", image=picture()), "needs a mask"),
    "sampled and given text": (lambda m: m.sample("text", text=LARGE_CIRCLE), "no blank"),
    "mask of what is given whole": (lambda m: m.sample("text", image=picture(), masks={"image": picture()}), "mask"),
    "mask without a value": (lambda m: m.sample("image", masks={"image": picture()}), "mask"),
    "mask that is no picture": (lambda m: m.sample("image", image=picture(), masks={"image": 3}), "PIL image"),
    "loose ignored": (lambda m: m.sample("image", looseness={"text": 0.5}), "needs 'text' to be given"),
    "loose beyond": (lambda m: m.sample("image", text="a red circle", looseness={"text": 1.5}), "between 0"),
    "loose nan": (lambda m: m.sample("image", text="a red circle", looseness={"text": NAN}), "between 0"),
    "no samples": (lambda m: m.sample("image", n=0), "n must be a whole number from 1 to 10000"),
    "too many": (lambda m: m.sample("image", n=10_001), "from 1 to 10000"),
    "n is text": (lambda m: m.sample("image", n="4"), "n must be"),  # type: ignore[arg-type]
    "n is true": (lambda m: m.sample("image", n=True), "n must be"),
    "values for others": (lambda m: m.sample("image", n=3, text=["a red circle"] * 2), "2 values of 'text'"),
    "seeds for others": (lambda m: m.sample("image", n=3, seed=[1, 2]), "2 seeds"),
    "batch": (lambda m: m.sample("image", batch=0), "batch must be"),
    "no steps": (lambda m: m.sample("image", steps=0), "steps must be a whole number from 1 to 1000"),
    "a billion steps": (lambda m: m.sample("image", steps=10**9), "from 1 to 1000"),
    "fractional steps": (lambda m: m.sample("image", steps=50.0), "steps must be"),  # type: ignore[arg-type]
    "nan steps": (lambda m: m.sample("image", steps=NAN), "steps must be"),  # type: ignore[arg-type]
    "unknown solver": (lambda m: m.sample("image", solver="dpm"), "dpmpp_2m"),
    "negative seed": (lambda m: m.sample("image", seed=-1), "whole number from 0"),
    "huge seed": (lambda m: m.sample("image", seed=2**63), "whole number from 0"),
    "seed beyond": (lambda m: m.sample("image", n=2, seed=2**63 - 1), "begin lower"),
    "seed of text": (lambda m: m.sample("image", seed="7"), "whole number"),  # type: ignore[arg-type]
    "fractional seed": (lambda m: m.sample("image", seed=1.5), "whole number"),  # type: ignore[arg-type]
    "nan guidance": (lambda m: m.sample("image", guidance=NAN), "guidance scale"),
    "infinite guidance": (lambda m: m.sample("image", guidance=float("inf")), "guidance scale"),
    "negative guidance": (lambda m: m.sample("image", guidance=-3.0), "guidance scale"),
    "absurd guidance": (lambda m: m.sample("image", guidance=1e308), "guidance scale"),
    "guidance of a stranger": (lambda m: m.sample("image", guidance={"sound": 1.0}), "'sound'"),
    "guidance of text": (lambda m: m.sample("image", guidance="7"), "guidance"),  # type: ignore[arg-type]
    "guidance backwards": (lambda m: Guidance(interval=(0.9, 0.1)), "interval"),
    "empty text": (lambda m: m.sample("image", text=""), "empty"),
    "blank text": (lambda m: m.sample("image", text=" \n "), "empty"),
    "a megabyte": (lambda m: m.sample("image", text="red " * 250_000), "characters"),
    "too many words": (lambda m: m.sample("image", text="red " * 21), "21 tokens"),
    "unseen words": (lambda m: m.sample("image", text="a red zebra riding"), "'zebra', 'riding'"),
    "control character": (lambda m: m.sample("image", text="a red\x00 circle"), "U+0000"),
    "half a surrogate": (lambda m: m.sample("image", text="a red \ud800"), "U+D800"),
    "text is a number": (lambda m: m.sample("image", text=7), "must be a str"),
    "no image": (lambda m: m.sample("text", image="photo.png"), "PIL image"),
    "nan image": (lambda m: m.sample("text", image=np.full((16, 16, 3), NAN, np.float32)), "NaN"),
    "float image": (lambda m: m.sample("text", image=np.zeros((16, 16, 3), np.float32)), "uint8"),
    "flat image": (lambda m: m.sample("text", image=np.zeros((0, 16, 3), np.uint8)), "shape"),
    "five channels": (lambda m: m.sample("text", image=np.zeros((16, 16, 5), np.uint8)), "shape"),
    "a bomb": (lambda m: m.sample("text", image=Image.new("1", (20_000, 20_000))), "20000 x 20000"),
    "chain of one": (lambda m: m.chain("text", text="a red circle"), "chain"),
    "chain of equals": (lambda m: m.chain("text", "text", text="a red circle"), "chain"),
    "chain to a stranger": (lambda m: m.chain("text", "sound"), "'sound'"),
    "score of one": (lambda m: m.score("image", "text", text="a red circle"), "image"),
    "score of itself": (lambda m: m.score("image", "image", image=picture()), "image"),
    "score of one draw": (
        lambda m: m.score("image", "text", samples=1, image=picture(), text="a red star"),
        "noise draws",
    ),
    "streams missing": (lambda m: m.predict_noise({"image": torch.zeros(1, 3, 16, 16)}, {}), "text"),
    "no streams": (lambda m: m.predict_noise({}, {}), "stream"),
    "wrong shape": (lambda m: m.predict_noise(joint(m, text=torch.zeros(2, 20, 9)), T), "(2, 20, 8)"),
    "wrong batch": (lambda m: m.predict_noise(joint(m, text=torch.zeros(3, 20, 8)), T), "same number"),
    "nan stream": (lambda m: m.predict_noise(joint(m, text=torch.full((2, 20, 8), NAN)), T), "finite"),
    "timestep missing": (lambda m: m.predict_noise(joint(m), {"image": 0.5}), "timesteps for image, text"),
    "timestep beyond": (lambda m: m.predict_noise(joint(m), T | {"text": 1.1}), "from 0 to 1"),
    "timestep nan": (lambda m: m.predict_noise(joint(m), T | {"text": NAN}), "from 0 to 1"),
    "timesteps for others": (lambda m: m.predict_noise(joint(m), T | {"text": torch.zeros(3)}), "one number or 2"),
    "no such device": (lambda m: m.to("abacus"), "'abacus'"),
}
T: dict[str, Any] = {"image": 0.5, "text": 0.5}


def joint(model: UniDiffuser, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    return {stream: torch.zeros(2, *shape) for stream, shape in model.shapes.items()} | others


@pytest.mark.parametrize("call", CALLS)
def test_a_bad_call_is_one_sentence(model: UniDiffuser, call: str) -> None:
    good = model.sample("text", seed=1)[0].values
    bad, words = CALLS[call]
    with pytest.raises(ValueError) as caught:
        bad(model)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 500
    assert model.sample("text", seed=1)[0].values == good


@pytest.mark.parametrize("name", ["Image", "my image", "image.latent", "", "seed", "n", "steps", "a" * 40])
def test_a_modality_has_a_speakable_name(name: str) -> None:
    codec = Vector.fit([np.array([0.0]), np.array([1.0])])
    with pytest.raises(ValueError, match="cannot be called"):
        UniDiffuser(MLP(MLPConfig(streams={name: (1, 1)}, dim=8)), "cosine", "v", {name: codec})


def test_a_network_must_fit_its_codecs() -> None:
    codec = Vector.fit([np.array([0.0]), np.array([1.0])])
    with pytest.raises(ValueError, match="made for"):
        UniDiffuser(MLP(MLPConfig(streams={"x": (2, 1)}, dim=8)), "cosine", "v", {"x": codec})
    with pytest.raises(ValueError, match="scaled_linear"):
        UniDiffuser(MLP(MLPConfig(streams={"x": (1, 1)}, dim=8)), "cosin", "v", {"x": codec})


COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "no verb": (["smple", "image"], 2, "did you mean sample?"),
    "no flag": (["sample", "image", "--stepz", "3"], 2, "did you mean --steps?"),
    "abbreviated flag": (["sample", "image", "--see", "3"], 2, "did you mean --seed?"),
    "no modality": (["sample"], 2, "nothing to sample"),
    "mistyped modality": (["sample", "imge"], 2, "did you mean image?"),
    "unknown given": (["sample", "image", "--sound", "a.wav"], 2, "'sound'; it has image, text"),
    "given twice": (["sample", "image", "--text", "a", "--given", "text=b"], 2, "given twice"),
    "given without value": (["sample", "image", "--given", "text"], 2, "NAME=VALUE"),
    "n of letters": (["sample", "image", "-n", "four"], 2, "whole number"),
    "n of zero": (["sample", "image", "-n", "0"], 2, "from 1 to 10000"),
    "seed below": (["sample", "image", "--seed", "-1"], 2, "whole number from 0"),
    "seed of digits": (["sample", "image", "--seed", "9" * 5000], 2, "whole number"),
    "steps": (["sample", "image", "--steps", "1e9"], 2, "whole number"),
    "solver": (["sample", "image", "--solver", "x"], 2, "ddim"),
    "guidance": (["sample", "image", "--guidance", "nan"], 2, "guidance scale"),
    "guidance of letters": (["sample", "image", "--guidance", "strong"], 2, "must be a number"),
    "two conventions": (["sample", "image", "--guidance", "1", "--g", "2"], 2, "two conventions"),
    "half an interval": (["sample", "image", "--guidance-interval", "0.2"], 2, "must be LOW,HIGH such as 0.2,0.8"),
    "interval backwards": (["sample", "image", "--guidance-interval", "0.9,0.1"], 2, "two timesteps"),
    "g below one": (["sample", "image", "--g", "0.5"], 2, "g = s + 1"),
    "loose": (["sample", "image", "--text", "a red star", "--loose", "text=2"], 2, "between 0"),
    "missing picture": (["sample", "text", "--image", "no.png"], 2, "cannot read no.png"),
    "folder as picture": (["sample", "text", "--image", "."], 2, "cannot read ."),
    "damaged picture": (["sample", "text", "--image", "cut.png"], 2, "cut.png is damaged"),
    "page as picture": (["sample", "text", "--image", "page.png"], 2, "page.png is not a PNG"),
    "like without recipe": (["sample", "image", "--like", "plain.png"], 2, "carries no recipe"),
    "like nothing": (["sample", "image", "--like", "no.png"], 2, "cannot read no.png"),
    "missing mask": (["sample", "image", "--image", "plain.png", "--mask", "image=no.png"], 2, "cannot read no.png"),
    "no rounds": (["chain", "text", "image", "--rounds", "0"], 2, "--rounds must be 1 or more"),
    "score of one": (["score", "--text", "a red star"], 2, "two"),
    "unknown model": (["evaluate", "moons"], 1, "there is no model 'moons'"),
    "preset": (["train", "scened", "--run", "run"], 2, "did you mean scenes?"),
    "missing model": (["sample", "image", "--model", "no_model"], 1, "there is no model 'no_model'"),
    "pickle": (["sample", "image", "--model", "model.pt"], 1, "convert it to safetensors"),
    "damaged model": (["models", "damaged"], 1, "config.json is missing"),
    "device": (["sample", "image", "--device", "abacus"], 2, "'abacus'"),
    "out is a file": (["sample", "image", "--out", "plain.png"], 1, "plain.png"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_command_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, code, words = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    picture().save("plain.png")
    Path("cut.png").write_bytes(Path("plain.png").read_bytes()[:50])
    Path("page.png").write_text("<html>not found</html>")
    Path("damaged").mkdir()
    takes_model = argv[0] in ("sample", "chain", "score") and "--model" not in argv
    model = ["--model", str(saved_model(tmp_path / "model"))] if takes_model else []
    before = {path for path in tmp_path.rglob("*") if "model" not in path.parts}
    try:
        left = main([*argv, *model])
    except SystemExit as stop:
        left = stop.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert (left, said.out) == (code, "")
    assert words in said.err and said.err.startswith("unidiffuser") and said.err.count("\n") == 1
    assert "Traceback" not in said.err and len(said.err) < 600
    assert {path for path in tmp_path.rglob("*") if "model" not in path.parts} == before

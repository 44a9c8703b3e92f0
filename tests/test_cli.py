"""The command line: the promised commands work as written, on a small model in the box."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import saved_model, tiny_model

from unidiffuser import Guidance, UniDiffuser
from unidiffuser.checkpoints import adapter, box
from unidiffuser.cli import VERBS, main
from unidiffuser.lora import Additions

SRC = Path(__file__).parents[1] / "src"
TEXT = "a large red circle above a small blue square"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved_model(folder / "scenes")
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a box with the tiny model as "scenes"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box, "BOX", models)
    return tmp_path


def run(command: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Run one command as it would be typed; what it printed."""
    assert main(shlex.split(command)[1:]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def run_json(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer = json.loads(run(command, capsys))  # fails unless stdout is one JSON value
    assert isinstance(answer, dict)
    return answer


def pixels(path: Path | str) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_the_promised_commands_work_as_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f'unidiffuser sample image --text "{TEXT}" -n 4 --seed 7 --out out/a', capsys)
    assert sorted(path.name for path in Path("out/a").iterdir()) == [*(f"000{k}.png" for k in range(4)), "samples.json"]

    answer = run_json("unidiffuser sample text --image out/a/0000.png -n 2 --json", capsys)
    assert [set(sample) for sample in answer["samples"]] == [{"seed", "text"}] * 2

    answer = run_json("unidiffuser sample image text -n 8 --seed 1 --out out/b --json", capsys)
    assert [sample["seed"] for sample in answer["samples"]] == list(range(1, 9))
    for k, sample in enumerate(answer["samples"]):
        assert sample["image"] == f"out/b/000{k}.png" and Path(sample["image"]).exists()
        assert sample["text"] == Path(f"out/b/000{k}.txt").read_text().strip()

    run("unidiffuser sample image --like out/a/0000.png --out out/c", capsys)
    assert pixels("out/c/0000.png") == pixels("out/a/0000.png")

    start = "a small green star left of a large yellow square"
    run(f'unidiffuser chain text image text image --text "{start}" --out out/d', capsys)
    assert {path.name for path in Path("out/d").iterdir()} == {
        "0000-01.png",
        "0000-02.txt",
        "0000-03.png",
        "samples.json",
    }

    answer = run_json(f'unidiffuser score --image out/a/0000.png --text "{TEXT}" --json', capsys)
    assert isinstance(answer["bits"], float) and answer["error"] > 0

    answer = run_json("unidiffuser evaluate scenes --samples 8 --json", capsys)
    assert answer["samples"] == 8 and "image_given_text" in answer["rows"]

    answer = run_json("unidiffuser doctor --json", capsys)
    assert answer["healthy"] and answer["models"]["scenes"]["whole"]
    assert "torch: " in run("unidiffuser doctor", capsys)


def test_a_model_of_the_scenes_is_measured_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    line = f"unidiffuser evaluate {model} --data scenes --samples 8 --only wording --only denoising"
    answer = run_json(f"{line} --html report.html --json", capsys)
    assert set(answer["rows"]) == {"text given image: wording", "image: denoising", "text: denoising"}
    assert answer["modalities"] == ["image", "text"] and Path("report.html").stat().st_size > 1000
    assert run_json(f"{line} --seed 1 --json", capsys)["data_sha256"] != answer["data_sha256"]


def test_every_picture_can_be_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f'unidiffuser sample image --text "{TEXT}" -n 2 --seed 7 --guidance 2 --steps 2 --out a', capsys)
    run("unidiffuser sample image text -n 2 --seed 3 --solver ancestral --g text=2 --out b", capsys)
    run("unidiffuser chain image text image --seed 3 -n 2 --out c", capsys)
    run(f'unidiffuser sample image --text "{TEXT}" --loose text=0.4 --seed 5 --out d', capsys)
    Image.new("L", (16, 8), 255).save("mask.png")
    run("unidiffuser sample image --image a/0000.png --mask image=mask.png --seed 5 --out e", capsys)
    for number, picture in enumerate(sorted(place.glob("[a-e]/*.png"))):
        answer = run_json(f"unidiffuser sample image --like {picture} --out again/{number} --json", capsys)
        assert answer["reproduced"] is True
        assert pixels(answer["samples"][0]["image"]) == pixels(picture)


def test_like_takes_other_flags(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f'unidiffuser sample image --text "{TEXT}" -n 3 --seed 7 --out a', capsys)
    answer = run_json("unidiffuser sample image --like a/0000.png -n 3 --out b --json", capsys)
    assert [sample["seed"] for sample in answer["samples"]] == [7, 8, 9]
    assert pixels("b/0002.png") == pixels("a/0002.png")
    answer = run_json('unidiffuser sample --like a/0000.png --text "a red star" --out c --json', capsys)
    assert "reproduced" not in answer and pixels("c/0000.png") != pixels("a/0000.png")


def test_guidance_acts_in_the_interval_that_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = f'unidiffuser sample image --text "{TEXT}" --seed 7 --steps 6 --guidance 2'
    run(f"{ask} --out a", capsys)
    answer = run_json(f"{ask} --guidance-interval 0.3,0.6 --out b --json", capsys)
    assert answer["guidance"] == {"scale": 2.0, "interval": [0.3, 0.6], "against": "marginal"}
    guidance = Guidance(scale=2.0, interval=(0.3, 0.6))
    [sample] = UniDiffuser.from_pretrained("scenes").sample("image", text=TEXT, seed=7, steps=6, guidance=guidance)
    assert pixels("b/0000.png") == sample["image"].tobytes() != pixels("a/0000.png")
    run("unidiffuser sample image --like a/0000.png --guidance-interval 0.3,0.6 --out c", capsys)
    run("unidiffuser sample image --like b/0000.png --out d", capsys)
    assert pixels("c/0000.png") == pixels("d/0000.png") == pixels("b/0000.png")
    report = run_json("unidiffuser evaluate scenes --samples 8 --steps 1 --guidance-interval 0.3,0.6 --json", capsys)
    assert report["settings"]["guidance"]["interval"] == [0.3, 0.6]


def test_like_says_why_it_cannot(place: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(1).save("other")
    run("unidiffuser sample image --seed 7 --out a --model other", capsys)
    main(shlex.split("sample image --like a/0000.png --out b"))
    assert "give its folder with --model" in capsys.readouterr().err
    main(shlex.split("sample image --like a/0000.png --out b --model scenes"))
    assert "has " in capsys.readouterr().err
    assert not Path("b").exists()
    run("unidiffuser sample image --like a/0000.png --out b --model other", capsys)
    main(shlex.split("sample text --like a/0000.png --model other"))
    assert "not text" in capsys.readouterr().err


def test_like_takes_the_adapters_that_made_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    g = torch.Generator().manual_seed(0)
    pair = (torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
    adapter.write(Path("own.safetensors"), Additions({"mid_block.attention.proj": pair}, 1.0), base="")
    run("unidiffuser sample image --seed 7 --out plain", capsys)
    run("unidiffuser sample image --seed 7 --lora own.safetensors=0.5 --out a", capsys)
    assert pixels("a/0000.png") != pixels("plain/0000.png")
    for model in ("", "--model scenes"):
        like = f"unidiffuser sample image --like a/0000.png {model} --lora own.safetensors=0.5 --out b --force --json"
        assert run_json(like, capsys)["reproduced"] is True
        assert pixels("b/0000.png") == pixels("a/0000.png")
    for flags in ("", "--model scenes", "--lora own.safetensors"):
        assert main(shlex.split(f"sample image --like a/0000.png {flags} --out c")) == 2
        assert "with --lora the adapters that it had" in capsys.readouterr().err
    assert main(shlex.split("sample image --like plain/0000.png --lora own.safetensors --out c")) == 2
    assert "but scenes with own.safetensors has " in capsys.readouterr().err


def test_nothing_is_overwritten_unless_forced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("unidiffuser sample image --seed 1 --out a", capsys)
    before = pixels("a/0000.png")
    assert main(shlex.split("sample image -n 2 --seed 2 --out a")) == 2
    assert "a/0000.png is there already; use --force" in capsys.readouterr().err
    assert pixels("a/0000.png") == before and not Path("a/0001.png").exists()
    run("unidiffuser sample image -n 2 --seed 2 --out a --force", capsys)
    assert pixels("a/0000.png") != before


def test_without_out_pictures_go_to_a_fresh_folder_and_texts_to_stdout(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("unidiffuser sample text -n 2 --seed 1", capsys)
    assert list(place.iterdir()) == []
    assert run("unidiffuser sample image", capsys) == "out/0000/0000.png\n"
    assert run("unidiffuser sample image", capsys) == "out/0001/0000.png\n"


def test_no_metadata_means_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("unidiffuser sample image --seed 1 --out a --no-metadata", capsys)
    with Image.open("a/0000.png") as picture:
        picture.load()
        assert picture.info == {}


def test_a_text_may_be_given_in_part(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sentence,) = run('unidiffuser sample text --text "a ___ red circle" --seed 1', capsys).splitlines()
    assert sentence == "a" or sentence.split()[0] == "a"


def test_the_list_of_samples_is_what_json_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_json("unidiffuser sample image --seed 1 --out a --json", capsys)
    assert json.loads(Path("a/samples.json").read_text()) == answer
    assert (answer["steps"], answer["solver"]) == (3, "dpmpp_2m") and len(answer["model_sha256"]) == 64


def test_models_are_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = run_json("unidiffuser models --json", capsys)["models"]
    assert model["name"] == "tiny" and model["modalities"] == {"image": "image", "text": "text"}


def test_a_map_of_bits_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("unidiffuser sample image --seed 1 --out a", capsys)
    answer = run_json('unidiffuser score --image a/0000.png --text "a red star" --samples 4 --out s --json', capsys)
    with Image.open(answer["map"]) as picture:
        assert picture.size == (256, 256)


def python(code: str, place: Path, **options: Any) -> subprocess.Popen[str]:
    """The command line in another process, on the tiny model."""
    # What a shell runs in the background ignores Ctrl-C, and so would this process, its child.
    heeding = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal, sys\n{heeding}\nfrom unidiffuser.cli import main\n{code}"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, cwd=place, env=environment, **options
    )


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(number: int, code: int, place: Path, models: Path) -> None:
    process = python(
        "from unidiffuser.pipeline import UniDiffuser\n"
        "def load(*_, **__):\n"
        "    print('ready', flush=True)\n"
        "    while True: pass\n"
        "UniDiffuser.from_pretrained = load\n"
        "sys.exit(main(['sample', 'image']))",
        place,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    assert err in ("unidiffuser: interrupted\n", "unidiffuser: terminated\n")
    assert list(place.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    process = python("import time; time.sleep(0.2); sys.exit(main(['models', '--json']))", place)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    assert process.wait(120) == 1


def test_an_unexpected_error_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error:\n  a long story")

    monkeypatch.setattr("unidiffuser.pipeline.UniDiffuser.sample", broken)
    assert main(["sample", "text"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError):
        main(["sample", "text", "--debug"])


def test_help_is_quick_and_complete(place: Path) -> None:
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, err = python("sys.exit(main(['--help']))", place).communicate(timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert err == "" and all(verb in out for verb in VERBS)
    assert min(costs) < 0.3  # of the processor's time: a busy machine is not our fault


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0 and f"usage: unidiffuser {verb}" in capsys.readouterr().out

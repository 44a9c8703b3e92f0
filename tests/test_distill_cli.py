"""The verbs of one-step distillation as they are typed, in a box whose teacher is tiny and untrained."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_model import LARGE_CIRCLE, tiny_model

from unidiffuser import UniDiffuser
from unidiffuser.checkpoints import box
from unidiffuser.cli import main
from unidiffuser.marking import CHUNK, SOURCE_TYPE
from unidiffuser.presets import PRESETS
from unidiffuser.training.preset import describe


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box in which "scenes" says of itself that it learnt the scenes, with a student."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_model()
    teacher.name, teacher.training = "scenes", describe(PRESETS["scenes"]())
    teacher.save(folder / "scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box, "BOX", folder)
        run = folder / "run"
        command = (
            f"distill scenes --divergence forward-kl --run {run} --steps 2 --batch 8 --preview-every 0 --workers 0"
        )
        assert main(shlex.split(command)) == 0
    (run / "final").rename(folder / "scenes-1step")
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box, "BOX", models)
    return tmp_path


def answer(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*shlex.split(command), "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_student_is_used_like_any_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = answer(f'sample image --model scenes-1step --text "{LARGE_CIRCLE}" -n 4 --seed 1 --out out', capsys)
    assert (drawn["model"], drawn["steps"], drawn["solver"]) == ("scenes-1step", 1, "renoise")
    assert len(list(Path("out").glob("*.png"))) == 4
    told = answer("sample text --model scenes-1step --image out/0000.png", capsys)
    assert isinstance(told["samples"][0]["text"], str)
    report = answer("evaluate scenes-1step --samples 8", capsys)
    assert report["model"] == "scenes-1step" and "image_given_text" in report["rows"]


def test_teacher_and_student_side_by_side(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = answer(
        'compare scenes scenes-1step --text "a small green star" -n 4 --seed 7 --out out/compare.png', capsys
    )
    assert [row["model"] for row in shown["rows"]] == ["scenes", "scenes-1step"]
    assert [row["steps"] for row in shown["rows"]] == [3, 1] and shown["seeds"] == [7, 8, 9, 10]
    with Image.open("out/compare.png") as sheet:
        sheet.load()
        assert sheet.width > 4 * 128 and sheet.height > 2 * 128
        assert SOURCE_TYPE in sheet.info[CHUNK]
    # The same pictures as `sample` draws with those seeds.
    model = UniDiffuser.from_pretrained("scenes-1step")
    again = model.sample("image", text="a small green star", seed=7)[0]["image"]
    with Image.open("out/compare.png") as sheet:
        assert again.getpixel((20, 20)) in {c for _, c in sheet.getcolors(10**6) or []}
    assert main(shlex.split('compare scenes scenes-1step --text "a small green star" --out out/compare.png')) == 2
    assert "there already" in capsys.readouterr().err


def test_a_student_of_another_teacher_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(1).save("other")
    assert main(shlex.split("compare other scenes-1step --sample image --out a.png")) == 0
    assert "scenes-1step is not a student of tiny but of scenes" in capsys.readouterr().err
    assert main(shlex.split("compare scenes scenes-1step --sample image --out b.png")) == 0
    assert "not a student" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"estimator": "expanded", "matched": False, "adaptive": True}),
        ("--estimator integral", {"estimator": "integral", "matched": True, "adaptive": False, "weight": "karras"}),
        ("--method f-distill --estimator integral", {"estimator": "integral", "matched": False, "weight": "x0"}),
        ("--method sid --estimator integral", {"estimator": "integral", "matched": True, "flow": 1.0}),
        ("--detach-ratio", {"estimator": "expanded", "ratio_gradient": False}),
    ],
)
def test_the_integral_form_of_an_expanded_method_is_its_objective_and_that_is_said(
    flags: str,
    expected: dict[str, Any],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unidiffuser import distill

    seen: list[distill.Distillation] = []
    monkeypatch.setattr(distill, "distill", lambda _, settings, *__, **___: seen.append(settings))
    assert main(shlex.split(f"distill scenes --run x {flags}")) == 0
    (settings,) = seen
    assert {name: getattr(settings.method, name) for name in expected} == expected
    assert ("the weight of the noise levels is matched" in capsys.readouterr().err) == bool(expected.get("matched"))


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("distill nothing --run x", 1, "there is no model 'nothing'"),
        ("sample image --model scenes-2step", 1, "there is no model 'scenes-2step'"),
        (
            "distill scenes --run x --divergence forwards-kl",
            2,
            "there is no divergence 'forwards-kl'; there are reverse",
        ),
        ("distill scenes --run x --method sidd", 2, "there is no method 'sidd'"),
        ("distill scenes --run x --weight heavy", 2, "weight of a method must be one of"),
        ("distill scenes --run x --estimator exact", 2, "estimator of a method must be one of"),
        ("distill scenes --run x --estimator integral --weight likelihood", 2, "clean end"),
        ("distill scenes --run x --estimator integral --detach-ratio", 2, "drop --detach-ratio"),
        ("distill scenes --run x --steps 0", 2, "1 step of the optimiser or more"),
        ("distill scenes --run x --begin 2", 2, "begins at a timestep above 0"),
        ("distill scenes --run x --data nowhere", 2, "nowhere"),
        ("distill scenes-1step --run x", 2, "is a student itself"),
        ("compare scenes nothing --sample image --out x.png", 1, "there is no model 'nothing'"),
    ],
)
def test_wrong_use_is_one_sentence(
    command: str, code: int, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)) == code
    err = capsys.readouterr().err.strip()
    assert said in err and len(err.splitlines()) == 1
    assert not Path("x").exists() or not any(Path("x").rglob("*.safetensors"))


def test_a_teacher_that_does_not_say_what_it_learnt_needs_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(1).save("other")
    assert main(shlex.split("distill other --run x")) == 2
    assert "needs real data" in capsys.readouterr().err
    command = "distill other --run x --method sim --steps 1 --warmup 0 --batch 4 --preview-every 0"
    assert main(shlex.split(command)) == 0
    assert UniDiffuser.from_pretrained("x/final").training["pairs"] == "None"


def test_the_card_of_a_student_sets_it_beside_its_teacher(place: Path) -> None:
    """What `runs/ship.py` writes."""
    import importlib.util

    from unidiffuser.evaluate import evaluate_scenes

    spec = importlib.util.spec_from_file_location("ship", Path(__file__).parents[1] / "runs/ship.py")
    assert spec is not None and spec.loader is not None
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    model = UniDiffuser.from_pretrained("scenes-1step")
    report = evaluate_scenes(model, 8)
    card = ship.card(model, report, 8)
    assert "one-step student of scenes" in card and "divergence\nforward-kl, expanded form" in card
    Path("scenes.json").write_text(json.dumps(report))
    lines = ship.beside_teacher(report, Path("scenes.json")).strip().splitlines()
    assert len(lines) == 2 + len(report["rows"])
    assert all(line.split("|")[2] == line.split("|")[3] for line in lines[2:])  # it is its own teacher here
    assert ship.beside_teacher(report, Path("nothing.json")) == ""

"""Distillation from end to end: resume in the same bits, a student is a model, and what is refused."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import tiny_model

from unidiffuser import UniDiffuser
from unidiffuser.datasets.scenes import Scenes
from unidiffuser.distill import Distillation, distill
from unidiffuser.guidance import Guidance
from unidiffuser.instruct import METHODS
from unidiffuser.training.preset import OptimiserSettings

SETTINGS = Distillation(
    warmup=3,
    refine=0.4,
    training=OptimiserSettings(
        steps=6, batch=10, lr=1e-3, betas=(0.0, 0.999), warmup=1, ema=0.5, save_every=4, log_every=2, autocast=False
    ),
    preview_every=3,
    workers=0,
)
PAIRS = Scenes(split="train", length=200)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> UniDiffuser:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    tiny_model().save(folder)
    return UniDiffuser.from_pretrained(folder)


@pytest.fixture(scope="module")
def straight(teacher: UniDiffuser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight")
    distill(teacher, SETTINGS, run, pairs=PAIRS)
    return run


def test_a_student_is_a_model_that_samples_in_one_step(straight: Path, teacher: UniDiffuser) -> None:
    student = UniDiffuser.from_pretrained(straight / "final")
    assert (student.settings.steps, student.settings.solver, student.settings.begin) == (1, "renoise", 0.7)
    assert student.training["teacher"] == {"name": "tiny", "sha256": teacher.digest}
    seen = []
    before = student.network.forward
    student.network.forward = lambda *args: seen.append(1) or before(*args)  # type: ignore[method-assign]
    (one,) = student.sample("image", text="a red circle", seed=3)
    assert len(seen) == 1
    student.sample("image", "text", seed=3, steps=4)
    assert len(seen) == 5
    assert student.sample("text", image=one["image"], seed=1)[0]["text"] is not None
    links = student.chain("text", "image", "text", text="a red circle", seed=2)[0]
    assert [set(link.values) for link in links] == [{"text", "image"}] * 2
    again = UniDiffuser.from_pretrained(straight / "final")
    assert again.sample("image", text="a red circle", seed=3)[0]["image"].tobytes() == one["image"].tobytes()


def test_scores_are_the_critics(straight: Path) -> None:
    student = UniDiffuser.from_pretrained(straight / "final")
    given = {"image": PAIRS[0]["image"], "text": PAIRS[0]["text"]}
    (score,) = student.score("image", "text", samples=4, **given)
    assert student.critic is not None
    as_network = UniDiffuser(student.critic, student.process_name, student.prediction, student.modalities)
    assert as_network.score("image", "text", samples=4, **given)[0].bits == score.bits
    as_network = UniDiffuser(student.network, student.process_name, student.prediction, student.modalities)
    assert as_network.score("image", "text", samples=4, **given)[0].bits != score.bits


def test_the_run_leaves_previews_and_figures(straight: Path) -> None:
    places = sorted(path.name for path in (straight / "previews").iterdir())
    assert places == ["given", "step-00000000", "step-00000003"]
    shown = {path.name for path in (straight / "previews/step-00000003").iterdir()}
    assert shown == {"image", "text", "image-text", "image-given-text", "text-given-image"}
    assert len(list((straight / "previews/step-00000003/image-given-text").iterdir())) == 4
    lines = [json.loads(line) for line in (straight / "student/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"student", "gap", "spread", "variety", "clipped", "critic.image", "critic.text", "judged"} <= set(lines[0])


@pytest.mark.parametrize(("stage", "at"), [("critic", 2), ("student", 3)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    stage: str, at: int, straight: Path, teacher: UniDiffuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unidiffuser.teach import Teaching

    name = "critic_loss" if stage == "critic" else "student_loss"
    before, calls = getattr(Teaching, name), []

    def stopping(self: Teaching, *args: object) -> object:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self, *args)

    monkeypatch.setattr(Teaching, name, stopping)
    with pytest.raises(SystemExit):
        distill(teacher, SETTINGS, tmp_path, pairs=PAIRS)
    monkeypatch.undo()
    assert not (tmp_path / "final").exists()
    distill(teacher, SETTINGS, tmp_path, pairs=PAIRS)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "final" / file).read_bytes() == (straight / "final" / file).read_bytes()


def test_a_run_that_is_done_says_so_at_once(straight: Path, teacher: UniDiffuser) -> None:
    written = (straight / "final/model.safetensors").stat().st_mtime_ns
    student = distill(teacher, SETTINGS, straight, pairs=PAIRS)
    assert student.critic is not None and (straight / "final/model.safetensors").stat().st_mtime_ns == written


def test_what_makes_no_sense_is_refused(straight: Path, teacher: UniDiffuser, tmp_path: Path) -> None:
    other = tiny_model(1)
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds a run with other settings \(teacher\.sha256"):
        distill(UniDiffuser.from_pretrained(tmp_path / "other"), SETTINGS, straight, pairs=PAIRS)
    with pytest.raises(ValueError, match=r"other settings \(method\.divergence"):
        again = replace(SETTINGS, method=replace(SETTINGS.method, divergence="jeffreys"))
        distill(teacher, again, straight, pairs=PAIRS)
    with pytest.raises(ValueError, match="is a student itself"):
        distill(UniDiffuser.from_pretrained(straight / "final"), SETTINGS, tmp_path / "x", pairs=PAIRS)
    with pytest.raises(ValueError, match=r"'forward-kl' .* needs real data"):
        distill(teacher, SETTINGS, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    for wrong in ({"begin": 0.0}, {"steps": ()}, {"steps": (99,)}, {"refine": 1.0}, {"shares": 0}, {"warmup": -1}):
        with pytest.raises(ValueError):
            replace(SETTINGS, **wrong)  # type: ignore[arg-type]


def test_without_data_what_needs_nothing_given_is_taught(teacher: UniDiffuser, tmp_path: Path) -> None:
    settings = replace(SETTINGS, method=METHODS["sim"], training=replace(SETTINGS.training, steps=2), warmup=1)
    student = distill(teacher, settings, tmp_path)
    assert student.sample("image", "text", seed=1)[0].values.keys() == {"image", "text"}
    shown = {path.name for path in (tmp_path / "previews/step-00000000").iterdir()}
    assert shown == {"image", "text", "image-text"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_teaches(name: str, teacher: UniDiffuser, tmp_path: Path) -> None:
    one = replace(SETTINGS.training, steps=1, log_every=1)
    settings = replace(SETTINGS, method=METHODS[name], warmup=0, preview_every=0, training=one)
    student = distill(teacher, settings, tmp_path, pairs=PAIRS)
    assert any(not x.equal(y) for x, y in zip(student.network.parameters(), teacher.network.parameters(), strict=True))
    (line,) = (tmp_path / "student/metrics.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert all(math.isfinite(x) for x in figures.values())
    assert ("regression" in figures, "judged" in figures) == (name == "dmd", METHODS[name].needs_ratio)


@pytest.mark.parametrize("constant", [True, False])
def test_collapse_is_noticed_and_said_once(constant: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A student begins as its teacher: of clean estimates that are all the same, or with noise in them."""
    made = tiny_model()
    for name, parameter in made.network.named_parameters():
        if constant and name.startswith("head."):
            parameter.data.zero_()
    UniDiffuser(made.network, made.process_name, "x0" if constant else "v", made.modalities, name="begun").save(
        tmp_path / "begun"
    )
    teacher = UniDiffuser.from_pretrained(tmp_path / "begun")
    slow = replace(SETTINGS.training, lr=1e-6, batch=24)
    distill(teacher, replace(SETTINGS, training=slow, warmup=0, preview_every=0), tmp_path / "run", pairs=PAIRS)
    said = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(said) == constant and all("collapsed at step 2: its samples lie 0% as far apart" in x for x in said)


@pytest.mark.parametrize(
    ("name", "asked", "taken", "warned"),
    [
        ("uni-instruct", None, 0.0, False),  # the teacher's own 2 would not be what the ratio is about
        ("uni-instruct", 2.0, 2.0, True),
        ("uni-instruct", 0.0, 0.0, False),
        ("sim", None, 2.0, False),
        ("sim", 1.0, 1.0, False),
    ],
)
def test_a_ratio_is_learnt_beside_an_unguided_teacher_unless_told(
    name: str,
    asked: float | None,
    taken: float,
    warned: bool,
    teacher: UniDiffuser,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher, "settings", replace(teacher.settings, guidance=Guidance(scale=2.0)))
    guidance = None if asked is None else Guidance(scale=asked)
    one = replace(SETTINGS.training, steps=1, log_every=1)
    settings = replace(
        SETTINGS, method=METHODS[name], guidance=guidance, warmup=0, preview_every=0, training=one, shares=1
    )
    student = distill(teacher, settings, tmp_path, pairs=PAIRS)
    assert student.training["guidance"]["scale"] == taken and not student.settings.guidance.on
    assert sum("nobody guided" in record.message for record in caplog.records) == warned


def test_more_steps_go_on(teacher: UniDiffuser, tmp_path: Path) -> None:
    short = replace(SETTINGS, training=replace(SETTINGS.training, steps=2), warmup=1)
    distill(teacher, short, tmp_path, pairs=PAIRS)
    distill(teacher, replace(short, training=replace(short.training, steps=4)), tmp_path, pairs=PAIRS)
    lines = (tmp_path / "student/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]

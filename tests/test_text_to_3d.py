"""Objects against a teacher whose picture of a text is known: every side of the object must become that picture."""

import json
import math
import os
import shlex
import signal
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from test_radiance import ball
from tiny_model import saved_model, tiny_model, words
from torch import Tensor

from unidiffuser import UniDiffuser
from unidiffuser.checkpoints import box
from unidiffuser.cli import main
from unidiffuser.datasets.scenes.render import GROUND, PAINT
from unidiffuser.guidance import Guidance
from unidiffuser.joint import Joint
from unidiffuser.marking import SOURCE_TYPE
from unidiffuser.mixture import GaussianMixture
from unidiffuser.modalities.image import Image
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.process import RectifiedFlow
from unidiffuser.radiance import FieldConfig, RadianceField
from unidiffuser.text_to_3d import (
    WAYS,
    Sculpting,
    diversity,
    optimiser,
    read_right,
    sculpt,
    turntable,
    views,
    write_gif,
)

SIZE = 16
TEXTS = ("a red circle", "a blue square")


def painted(resolution: int = 33, radius: float = 0.55, colour: str = "red", ground: str = "white") -> RadianceField:
    """A ball of one paint before one ground, which looks the same from everywhere."""
    field = ball(radius, resolution=resolution)
    with torch.no_grad():
        for channel in range(3):
            field.colour[:, channel] = torch.logit(torch.tensor(PAINT[colour][channel] / 255).clamp(0.01, 0.99))
        field.ground.copy_(torch.logit((torch.tensor(GROUND[ground]) / 255).clamp(0.01, 0.99)))
    return field.requires_grad_(False)


class Exact(MLP):
    """The exact law of two texts and a picture of each. As a critic it is an MLP that knows nothing yet."""

    kind = "exact"

    def __init__(self, law: GaussianMixture) -> None:
        super().__init__(MLPConfig(streams={s: tuple(x.shape[1:]) for s, x in law.means.items()}, dim=64, depth=1))
        self.law = law

    def forward(
        self,
        xt: Joint,
        t: Mapping[str, Tensor],
        label: Tensor | None = None,
        wanted: Collection[str] | None = None,
    ) -> Joint:
        return self.law(xt, dict(t))


def target() -> Tensor:
    """The picture of the first text, (3, SIZE, SIZE)."""
    return views(painted(), SETTINGS, SIZE, 1, 0)[0]


SETTINGS = Sculpting(
    method=WAYS["sds"],
    guidance=Guidance(),
    shape=FieldConfig(resolution=12),
    samples=24,
    drawn=8,
    training=replace(optimiser(150), batch=4, rates={"field": 600.0}, save_every=5),
)


@pytest.fixture(scope="module")
def teacher() -> UniDiffuser:
    torch.manual_seed(0)
    first = target()
    means = {"image": torch.stack([first, -first]), "text": words().encode(list(TEXTS))[""]}
    stds = {"image": torch.full((1, 1, 1, 1), 0.2), "text": torch.full((1, 1, 1), 0.05)}
    law = GaussianMixture(process=RectifiedFlow(), weights=torch.ones(2), means=means, stds=stds)
    codecs = {"image": Image.fit([], size=SIZE), "text": words()}
    return UniDiffuser(Exact(law), "rectified_flow", "x0", codecs, name="exact")


def distance(field: RadianceField, goal: Tensor) -> float:
    """Root mean square over random sides; the worst side."""
    seen = views(field, SETTINGS, SIZE, 12, 5)
    return float((seen - goal).square().mean((1, 2, 3)).sqrt().max())


def begun() -> float:
    from unidiffuser.joint import generator

    return distance(RadianceField(SETTINGS.shape, generator(0, "field")).requires_grad_(False), target())


@pytest.mark.parametrize(("method", "left"), [("sds", 0.4), ("vsd", 0.6), ("uni-instruct", 0.6)])
def test_every_side_becomes_the_picture_of_the_text(
    method: str, left: float, teacher: UniDiffuser, tmp_path: Path
) -> None:
    """left: the share of the distance at the start that may remain on the worst side."""
    settings = replace(
        SETTINGS, method=WAYS[method], training=replace(SETTINGS.training, lr=3e-4, rates={"field": 200.0})
    )
    field = sculpt(teacher, {"text": TEXTS[0]}, settings, tmp_path)
    assert distance(field, target()) < left * begun()


def test_the_text_matters(teacher: UniDiffuser, tmp_path: Path) -> None:
    field = sculpt(teacher, {"text": TEXTS[1]}, SETTINGS, tmp_path)
    assert distance(field, -target()) < distance(field, target())


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    teacher: UniDiffuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unidiffuser import text_to_3d

    settings = replace(SETTINGS, method=WAYS["uni-instruct"], training=replace(SETTINGS.training, steps=12))
    straight = sculpt(teacher, {"text": TEXTS[0]}, settings, tmp_path / "straight")
    before, calls = text_to_3d.render, []

    def stopping(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(text_to_3d, "render", stopping)
    with pytest.raises(SystemExit):
        sculpt(teacher, {"text": TEXTS[0]}, settings, tmp_path / "stopped")
    monkeypatch.undo()
    again = sculpt(teacher, {"text": TEXTS[0]}, settings, tmp_path / "stopped")
    for name, x in straight.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    lines = [(tmp_path / run / "object/metrics.jsonl").read_text().splitlines() for run in ("straight", "stopped")]
    steps, figures = zip(*(([json.loads(x)["step"] for x in run], json.loads(run[-1])) for run in lines), strict=True)
    assert steps[0] == steps[1] and figures[0]["object"] == figures[1]["object"]
    assert {"object", "gap", "clipped", "judged", "critic.image"} <= set(figures[0])


def test_what_makes_no_sense_is_refused(teacher: UniDiffuser, tmp_path: Path) -> None:
    one = replace(SETTINGS, training=replace(SETTINGS.training, steps=1))
    sculpt(teacher, {"text": TEXTS[0]}, one, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(given\.text"):
        sculpt(teacher, {"text": TEXTS[1]}, one, tmp_path / "run")
    with pytest.raises(ValueError, match="no image can be given"):
        sculpt(teacher, {"image": Pictures.new("RGB", (16, 16))}, one, tmp_path / "x")
    with pytest.raises(ValueError, match="no modality 'sound'"):
        sculpt(teacher, {"sound": 1}, one, tmp_path / "x")
    texts = UniDiffuser(MLP(MLPConfig(streams={"text": (20, 8)})), "cosine", "x0", {"text": words()}, name="texts")
    with pytest.raises(ValueError, match="has only text of kind 'text'"):
        sculpt(texts, {}, one, tmp_path / "x")
    student = tiny_model()
    student = UniDiffuser(
        student.network, "cosine", "v", student.modalities, critic=tiny_model(1).network, name="a student"
    )
    with pytest.raises(ValueError, match="a student is a student itself"):
        sculpt(student, {"text": TEXTS[0]}, one, tmp_path / "x")
    for wrong in ({"elevations": (20.0, 10.0)}, {"elevations": (0.0, 90.0)}, {"samples": 1}, {"drawn": 0}):
        with pytest.raises(ValueError):
            replace(SETTINGS, **wrong)  # type: ignore[arg-type]


def test_a_ball_reads_as_a_circle_from_every_side_and_not_as_another_text() -> None:
    from unidiffuser.datasets.scenes.render import RADIUS, UNIT, WIDTH

    camera, settings = SETTINGS.camera, replace(SETTINGS, samples=96)
    seen = RADIUS["large"] / UNIT / (WIDTH / 2)  # of half the picture
    radius = camera.distance * math.sin(math.atan(seen * math.tan(math.radians(camera.sight / 2))))
    pixels = views(painted(65, radius), settings, 64, 6, 1)
    right = read_right(pixels, "a large red circle on a white background")
    assert right == {"share": 1.0, "unreadable": 0.0, "wrong": {}}
    other = read_right(pixels, "a small blue circle on a white background")
    assert other == {"share": 0.0, "unreadable": 0.0, "wrong": {"colour 1": 6, "size 1": 6}}
    assert read_right(pixels, "a photograph of a dog") is None
    assert read_right(pixels[..., :32], "a large red circle") is None


def test_diversity_is_the_mean_difference_of_pairs() -> None:
    a, b, c = (torch.full((2, 3, 4, 4), x) for x in (0.0, 0.5, 1.0))
    assert diversity([a, b, c]) == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert diversity([a, a]) == 0
    with pytest.raises(ValueError, match="two or more"):
        diversity([a])


def test_a_turntable_is_a_gif_that_turns(tmp_path: Path) -> None:
    frames = turntable(painted(), SETTINGS, 24)
    write_gif(frames, tmp_path / "a.gif")
    with Pictures.open(tmp_path / "a.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["loop"]) == ((24, 24), len(frames), 0)  # type: ignore[attr-defined]
        gif.seek(len(frames) - 1)
        near = np.asarray(gif.convert("RGB")).astype(int) - np.asarray(frames[-1])
        assert np.abs(near).mean() < 8  # a GIF has 256 colours
    packet = (tmp_path / "a.gif").read_bytes().partition(b"!\xff\x0bXMP DataXMP")[2].partition(b"\1\xff\xfe")[0]
    assert SOURCE_TYPE in {value for node in ElementTree.fromstring(packet).iter() for value in node.attrib.values()}


def test_the_command_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_model(tmp_path / "scenes")
    monkeypatch.setattr(box, "BOX", tmp_path)
    monkeypatch.chdir(tmp_path)
    text = '--text "a large red circle on a white background"'
    end = "--steps 2 --views 2 --json"
    assert main(shlex.split(f"text-to-3d {text} --method uni-instruct --out out/turntable.gif -n 2 {end}")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["turntables"] == ["out/turntable.gif", "out/turntable-1.gif"] and answer["seeds"] == [0, 1]
    assert 0 <= answer["read_right"] <= 1 and answer["diversity"] > 0
    assert json.loads(Path("out/turntable.run/seed-1/preset.json").read_text())["guidance"]["scale"] == 3.0
    assert all(Path(file).stat().st_size > 0 for file in answer["turntables"])
    for command, said in (
        (f"{text} --out out/turntable.gif", "is there already"),
        (f"{text} --out a.png", "does not end in .gif"),
        ("--out a.gif", "give --text"),
        (f"{text} --method dreams --out a.gif", "there are sds, vsd, uni-instruct"),
        (f"{text} --divergence none --out a.gif", "there is no divergence 'none'"),
        (f"{text} --method sds --divergence pearson --out a.gif", "sds has no critic"),
        (f"{text} --steps 0 --out a.gif", "1 step or more"),
        (f"{text} -n 0 --out a.gif", "counted from 1"),
    ):
        assert main(shlex.split(f"text-to-3d {command}")) == 2, command
        err = capsys.readouterr().err.strip()
        assert said in err and len(err.splitlines()) == 1

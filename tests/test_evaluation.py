"""Evaluation on any data: models that are right or wrong by construction, and what their reports say."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from unidiffuser.agreement import pointwise_information
from unidiffuser.answers import Score
from unidiffuser.chains import sampler
from unidiffuser.checkpoints import ModelError
from unidiffuser.codecs import Codecs
from unidiffuser.datasets import Data, open_data
from unidiffuser.distances import frechet
from unidiffuser.evaluation import MEASURES, evaluate_data, lines
from unidiffuser.evaluation.features import extractor
from unidiffuser.evaluation.inception import Inception
from unidiffuser.evaluation.page import page
from unidiffuser.evaluation.paths import consistency
from unidiffuser.evaluation.reference import gather
from unidiffuser.evaluation.report import measure, prepare
from unidiffuser.evaluation.trial import NotMeasured
from unidiffuser.joint import Joint
from unidiffuser.mixture import GaussianMixture
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.text import Text
from unidiffuser.process import Cosine

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
N = 48


def drawn(colour: str, dice: np.random.Generator) -> PIL.Image.Image:
    """A picture in about this colour: what the world of these tests is made of."""
    pixels = np.array(COLOURS[colour]) + dice.normal(0, 25, size=(1, 1, 3)) + dice.normal(0, 10, size=(8, 8, 3))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def folder(place: Path, n: int = 2 * N, texts: Sequence[str] = ()) -> Path:
    """Pictures of three colours with metadata; every tenth has no text."""
    place.mkdir(parents=True)
    dice, rows = np.random.default_rng(0), []
    for k in range(n):
        colour = list(COLOURS)[k % 3]
        drawn(colour, dice).save(place / f"{k}.png")
        row = {"file_name": f"{k}.png", "text": texts[k] if texts else colour}
        rows.append(json.dumps({"file_name": f"{k}.png"} if k % 10 == 9 and not texts else row))
    (place / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return place


@dataclass
class Fake:
    """A model that draws from the world; `wrong` says of which colour what it draws given a text or picture is."""

    wrong: Callable[[str], str] = str
    only: tuple[str, ...] = tuple(COLOURS)
    name: str = "fake"
    digest: str = "0" * 64
    device: str = "cpu"
    modalities: dict[str, Any] = field(
        default_factory=lambda: {"image": Image(size=8), "text": Text.fit(list(COLOURS), width=4)}
    )

    def choose(self, **options: Any) -> None:
        if set(options) - {"steps", "guidance"}:
            raise ValueError("there is no such option")

    def sample(self, of: str, n: int, seed: list[int], batch: int, **given: Any) -> list[dict[str, Any]]:
        rows = []
        for k in range(n):
            dice = np.random.default_rng(seed[k])
            colour = self.only[int(dice.integers(len(self.only)))]
            if "text" in given:
                colour = self.wrong(given["text"][k])
            if "image" in given:
                mean = np.asarray(given["image"][k], float).mean((0, 1))
                colour = self.wrong(min(COLOURS, key=lambda c: float(np.square(mean - COLOURS[c]).sum())))
            rows.append({"image": drawn(colour, dice), "text": colour})
        return rows

    def encode(self, **values: Any) -> Joint:
        return Codecs(self.modalities).encode(values)

    def score(self, of: str, about: str, samples: int, seed: int, **given: Any) -> list[Score]:
        """True of the world: high where text and picture agree."""
        told = [row["text"] for row in self.sample("text", len(given["image"]), [0] * 999, 1, image=given["image"])]
        return [Score(1.6 if a == b else -9.0, 0.0, {}) for a, b in zip(told, given["text"], strict=True)]


def report(model: Fake, data: Data, *only: str, samples: int = N, **options: Any) -> dict[str, Any]:
    return evaluate_data(model, data, samples, only=only or None, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return open_data(folder(tmp_path_factory.mktemp("data") / "colours"))


def test_a_true_model_is_as_near_as_truth(data: Data) -> None:
    found = report(Fake(), data, "likeness", "classes", "agreement")
    assert found["pairs"]["passed_over"] == {"it has no text": 9}
    for name in ("image: distance", "image given text: distance"):
        numbers = found["rows"][name]["numbers"]
        assert abs(numbers["kid"]["value"]) < 4 * numbers["kid"]["error"]
        assert numbers["fid"]["value"] < 3 * numbers["fid"]["truth"]
        assert numbers["precision"]["value"] > 0.9 * numbers["precision"]["truth"]
        assert numbers["recall"]["value"] > 0.8 * numbers["recall"]["truth"] > 0.5
        assert found["rows"][name]["features"] == "random"
    for name in ("image given text: class", "text given image: class"):
        accuracy = found["rows"][name]["numbers"]["accuracy"]
        assert accuracy["value"] == accuracy["truth"] == 1.0 and accuracy["n"] == N
    assert found["rows"]["text: frequencies"]["numbers"]["distance"]["value"] < 0.25
    agreement = found["rows"]["image and text: agreement"]["numbers"]
    assert agreement["auc"] == {"value": 1.0, "error": 0.0, "n": 32, "n_other": 32}
    assert agreement["bits"]["value"] == pytest.approx(1.6)


def test_a_model_that_confuses_or_forgets_is_found_out(data: Data) -> None:
    order = list(COLOURS)
    found = report(Fake(wrong=lambda c: order[(order.index(c) + 1) % 3], only=("red",)), data, "likeness", "classes")
    assert found["rows"]["image given text: class"]["numbers"]["accuracy"]["value"] == 0.0
    assert found["rows"]["text given image: class"]["numbers"]["accuracy"]["value"] == 0.0
    assert found["rows"]["text: frequencies"]["numbers"]["distance"]["value"] > 0.5
    alone = found["rows"]["image: distance"]["numbers"]
    assert alone["kid"]["value"] > 4 * alone["kid"]["error"]
    assert alone["fid"]["value"] > 10 * alone["fid"]["truth"]
    assert alone["precision"]["low"] > 0.6 and alone["recall"]["high"] < 0.5
    # The pictures of shuffled colours are all there: as a crowd they are right, and only the classes see it.
    assert found["rows"]["image given text: distance"]["numbers"]["recall"]["low"] > 0.6


def test_texts_are_compared_letter_by_letter_and_word_by_word(tmp_path: Path) -> None:
    pairs = open_data(folder(tmp_path / "data", texts=[f"{list(COLOURS)[k % 3]} thing" for k in range(2 * N)]))
    codecs = {"image": Image(size=8), "text": Text.fit([f"{c} thing" for c in COLOURS], width=4)}

    def numbers(model: Fake) -> Any:
        return report(model, pairs, "wording")["rows"]["text given image: wording"]["numbers"]

    @dataclass
    class Says(Fake):
        says: str = "{} thing"

        def sample(self, of: str, n: int, seed: list[int], batch: int, **given: Any) -> list[dict[str, Any]]:
            rows = super().sample(of, n, seed, batch, **given)
            return [{**row, "text": self.says.format(row["text"])} for row in rows]

    right = numbers(Says(modalities=codecs))
    assert right["same"]["value"] == right["words"]["value"] == 1.0 > right["words of other pairs"]["value"] >= 0.5
    other = numbers(Says(modalities=codecs, says="some {}"))  # one word of two is right
    assert (other["same"]["value"], other["words"]["value"]) == (0.0, 0.5)
    blind = numbers(Says(modalities=codecs, says="blue thing"))
    assert blind["words"]["value"] == pytest.approx(blind["words of other pairs"]["value"], abs=0.1)


def test_a_sample_is_asked_for_given_every_set_of_others(data: Data) -> None:
    trial = prepare(Fake(), data, 8)  # type: ignore[arg-type]
    trial.reference = replace(trial.reference, names=("a", "b", "c"))
    assert trial.givens("b") == [("a",), ("c",), ("a", "c")]


def test_the_same_seed_gives_the_same_report_and_another_does_not(data: Data) -> None:
    first, again, other = (report(Fake(), data, "likeness", "classes", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["rows"] != other["rows"]
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert any("class [exact]: accuracy 100.0 %" in line for line in lines(first))


def test_what_does_not_apply_is_said_and_what_was_asked_for_is_an_error(tmp_path: Path) -> None:
    captions = [f"{colour} number {k}" for k in range(8) for colour in COLOURS]
    unlike = open_data(folder(tmp_path / "unlike", 24, captions))
    model = Fake(modalities={"image": Image(size=8), "text": Text.fit(captions, width=4)})
    trial = prepare(model, unlike, 8)  # type: ignore[arg-type]
    with pytest.raises(NotMeasured, match="closed set"):
        measure(trial, ["classes"])
    with pytest.raises(ValueError, match="no measure 'taste'; there are likeness, classes"):
        measure(trial, ["taste"])


def test_the_page_shows_pictures_and_escapes_words(data: Data) -> None:
    trial = prepare(Fake(name="<b>"), data, 8)  # type: ignore[arg-type]
    text = page(measure(trial, ["likeness", "classes"]), trial)
    assert "<b>" not in text and "&lt;b&gt;: evaluation" in text
    assert text.count("data:image/png;base64,") == 8 + 8 + 8  # alone, given text, and what texts are given
    assert "image given text: class" in text and "http" not in text


@pytest.mark.parametrize(
    "change, said",
    [
        ({"samples": 7}, "samples must lie between 8 and 10000"),
        ({"seed": -1}, "seed must lie"),
        ({"features": "clip"}, "no features 'clip'; there are random"),
        ({"features": "inception"}, "needs the file of its weights"),
        ({"features": "random", "inception": "x.pth"}, "takes no weights"),
        ({"settings": {"taste": 1}}, "no such option"),
    ],
)
def test_bad_values_are_refused(data: Data, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        report(Fake(), data, **change)


def test_data_that_do_not_fit_are_refused(tmp_path: Path, data: Data) -> None:
    with pytest.raises(ValueError, match="the data have image, text and the model has sound"):
        report(Fake(modalities={"sound": None}), data)
    with pytest.raises(ValueError, match="a kind of text in the data and a kind of image in the model"):
        report(Fake(modalities={"text": Image(size=8)}), data)
    words = Text.fit(["red", "mauve"], width=4)
    with pytest.raises(
        ValueError, match=r"as this model takes them, and of the others most often: the word '(green|blue)'"
    ):
        report(Fake(modalities={"image": Image(size=8), "text": words}), open_data(folder(tmp_path / "few", 20)))
    with pytest.raises(ValueError, match="encoded data"):
        report(Fake(), replace(data, codecs=Fake().modalities))


def test_half_of_few_pairs_is_kept_for_the_truth(tmp_path: Path) -> None:
    found = report(Fake(), open_data(folder(tmp_path / "few", 9)), "likeness")
    assert (found["pairs"]["asked"], found["pairs"]["others"]) == (4, 5)
    row = found["rows"]["image: distance"]
    assert row["n"] == N and row["numbers"]["fid"]["value"] < 3 * row["numbers"]["fid"]["truth"]
    assert row["numbers"]["precision"]["n"] == N and row["numbers"]["recall"]["n"] == 4


@pytest.mark.parametrize(("how", "pairs"), [("joined", 24), ("mixed", 15 + 6), ("damaged", 23)])
def test_no_true_pair_is_there_twice(tmp_path: Path, how: str, pairs: int) -> None:
    texts = [list(COLOURS)[k % 3] for k in range(24)]
    place, sources = folder(tmp_path / "data/a", 24, texts), [{"path": "a"}]
    if how == "joined":  # each picture meets four words one after the other
        words = "".join(f"{word}\n" for word in 4 * list(COLOURS))
        (tmp_path / "data/words").mkdir()
        (tmp_path / "data/words/metadata.csv").write_text("word\n" + words)
        sources = [
            {"path": "a", "columns": {"image": "file_name"}, "join": "text"},
            {"path": "words", "columns": {"text": "word"}, "join": "word"},
        ]
    elif how == "mixed":  # of 30 samples the small source has half, and shows its rows again and again
        small = folder(tmp_path / "data/b", 6, texts[:6])
        for k, picture in enumerate(small.glob("*.png")):
            PIL.Image.new("RGB", (8, 8), (k, 0, 0)).save(picture)
        sources = [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]
    else:
        (place / "7.png").write_bytes((place / "7.png").read_bytes()[:60])
    (tmp_path / "data/data.json").write_text(json.dumps({"sources": sources}))
    data = open_data(tmp_path / "data")
    found = gather(Fake(), data, 10, 0)  # type: ignore[arg-type]
    pictures = [np.asarray(pair["image"]).tobytes() for pair in (*found.asked, *found.others)]
    assert len(pictures) == len(set(pictures)) == pairs


def mixture() -> GaussianMixture:
    means = {"a": torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), "b": torch.tensor([[1.5], [-1.5]])}
    stds = {"a": torch.tensor(0.5), "b": torch.tensor(0.5)}
    return GaussianMixture(process=Cosine(), weights=torch.tensor([0.6, 0.4]), means=means, stds=stds)


def ways(denoiser: Any) -> dict[str, float]:
    draw = sampler(denoiser, Cosine(), {"a": (2,), "b": (1,)}, steps=20)
    return {title: numbers["p"] or 0.0 for title, numbers in consistency(draw, "a", "b", range(300))}


def test_one_law_is_consistent_and_a_path_that_forgets_is_found_out() -> None:
    mix = mixture()
    exact = ways(mix)
    assert list(exact) == ["at once against a first", "at once against b first", "a first against b first"]
    assert min(exact.values()) > 0.005

    def forgetful(xt: Joint, t: dict[str, torch.Tensor]) -> Joint:
        """It draws a as if b were not given."""
        given = t["b"] == 0
        return mix(xt, {"a": t["a"], "b": torch.where(given, torch.ones_like(t["b"]), t["b"])}) | {
            "b": torch.where(given[:, None], xt["b"], mix(xt, t)["b"])
        }

    found = ways(forgetful)
    assert found["at once against a first"] > 0.005
    assert max(found["at once against b first"], found["a first against b first"]) < 0.005


def test_true_scores_and_the_true_law_agree() -> None:
    """The score that `agreement` takes from a model is high for pairs of one component and low for others."""
    mix = mixture()
    joint = mix.sample(40, torch.Generator().manual_seed(0))
    found = pointwise_information(mix, Cosine(), {"a": (2,), "b": (1,)}, joint, "a", "b", range(40), samples=32)
    assert Counter((found.bits > 0).tolist())[True] > 34


def test_random_features_see_noise_and_blur_more_the_more_there_is() -> None:
    g = np.random.default_rng(0)
    true, rest = ([drawn(c, g) for c in list(COLOURS) * 20] for _ in range(2))
    vectors, codec = extractor(None, None), Image(size=8)

    def distance(strength: float) -> float:
        spoilt = [
            PIL.Image.fromarray((np.asarray(p) + g.normal(0, strength, (8, 8, 3))).clip(0, 255).astype(np.uint8))
            for p in rest
        ]
        return dict(frechet(vectors.of(codec, spoilt), vectors.of(codec, true)))["value"]

    grown = [distance(s) for s in (0.0, 40.0, 80.0, 120.0)]
    assert grown == sorted(grown) and grown[-1] > 5 * grown[0]


def test_inception_has_the_shape_that_was_published(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Inception().eval()
    assert sum(p.numel() for p in network.parameters()) == 21_785_568  # without the 1,008 classes
    state = {n: x.clone() for n, x in network.state_dict().items() if not n.endswith("tracked")}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = extractor(None, tmp_path / "weights.safetensors")
    picture = drawn("red", np.random.default_rng(0))
    vector = loaded.of(Image(size=8), [picture, picture])
    assert vector.shape == (2, 2048) and loaded.name == "inception (weights.safetensors)"
    del state["Mixed_7c.branch3x3_2a.conv.weight"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        ModelError, match=r"not Inception v3 as FID uses it: Mixed_7c\.branch3x3_2a\.conv\.weight is absent"
    ):
        extractor(None, tmp_path / "other.safetensors")


def test_every_measure_has_a_name_of_its_own() -> None:
    names = ["likeness", "classes", "wording", "clip", "agreement", "paths", "likelihood", "denoising"]
    assert list(MEASURES) == names

"""Encoded data: the samples of the raw data, made once; stopped and gone on with, checked, and told from others."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from data_folders import picture_folder, shard_members, tar, wav, write
from test_datasets_formats import coco_folder
from test_datasets_mixing import declare, three_modalities, two_folders
from torch import Tensor

from unidiffuser import encode as encoding
from unidiffuser.datasets import Data, DataLost, files, open_data, shards
from unidiffuser.datasets.checking import check
from unidiffuser.datasets.codec_files import codec_key, load_codecs
from unidiffuser.datasets.encoded import MANIFEST, read_manifest
from unidiffuser.modalities import text as texts
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.text import Text


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two rows, batches of two, codes of words that are good enough for tests."""
    monkeypatch.setattr(texts, "REPULSION_STEPS", 5)
    monkeypatch.setattr(encoding, "MOST_ROWS", 2)
    monkeypatch.setattr(encoding, "BATCH", 2)


def encoded(folder: Path, out: Path, **options: Any) -> tuple[Data, Data]:
    """The raw data and the encoded ones."""
    raw = open_data(folder, seed=7, **options)
    encoding.encode(raw, encoding.fitted(raw), out)
    return raw, open_data(out, seed=7)


def as_streams(raw: Data, index: int, codecs: Any) -> dict[str, Tensor]:
    sample = raw.pairs[index]
    return {name: codecs[name].encode([codecs[name].check(value)])[""][0] for name, value in sample.items()}


def assert_same(raw: Data, ours: Data) -> None:
    assert len(raw.pairs) == len(ours.pairs) and raw.labels == ours.labels and ours.codecs is not None
    for i in range(len(raw.pairs)):
        expected, got = as_streams(raw, i, ours.codecs), ours.pairs[i]
        assert got.keys() == expected.keys()
        assert all(torch.equal(x, expected[name]) for name, x in got.items())
        assert raw.pairs.label_of(i) == ours.pairs.label_of(i)


def test_every_sample_is_that_of_the_raw_data_to_the_bit(tmp_path: Path) -> None:
    assert_same(*encoded(picture_folder(tmp_path / "raw", 5), tmp_path / "out"))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"00-0000{k}.safetensors" for k in range(3)), "codecs.json", "codecs.safetensors", MANIFEST]


def test_captions_take_turns_and_missing_modalities_stay_missing(tmp_path: Path) -> None:
    assert_same(*encoded(coco_folder(tmp_path / "coco"), tmp_path / "out"))
    rows = [
        {"file_name": "0.png", "text": None},
        {"file_name": None, "text": "words"},
        {"file_name": "2.png", "text": "a"},
    ]
    raw, ours = encoded(picture_folder(tmp_path / "raw", 3, rows), tmp_path / "holes")
    assert_same(raw, ours)
    assert [sorted(ours.pairs[i]) for i in range(3)] == [["image"], ["text"], ["image", "text"]]


def test_mixed_and_joined_sources_stay_so(tmp_path: Path) -> None:
    two_folders(tmp_path / "two")
    mixed = declare(tmp_path / "two", sources=[{"path": "a", "weight": 1}, {"path": "b", "weight": 3}])
    assert_same(*encoded(mixed, tmp_path / "mixed"))
    assert_same(*encoded(three_modalities(tmp_path / "digits"), tmp_path / "joined"))


def test_shards_of_one_source_with_sound(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"file_name": f"{k}.wav", "text": f"s{k}"}) + "\n" for k in range(3))
    write(tmp_path / "raw", {"metadata.jsonl": rows, **{f"{k}.wav": wav(k) for k in range(3)}})
    raw, ours = encoded(tmp_path / "raw", tmp_path / "out")
    assert ours.kinds == raw.kinds and set(ours.pairs[1]) == {"sound", "text"}
    for i in range(3):  # batched matrix products may differ in the last bit
        for name, x in as_streams(raw, i, ours.codecs).items():
            torch.testing.assert_close(ours.pairs[i][name], x)


def test_stopped_and_gone_on_with_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 7))
    codecs = encoding.fitted(raw)
    encoding.encode(raw, codecs, tmp_path / "straight")

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoding.encode(raw, codecs, tmp_path / "halves", progress=stop)
    with pytest.raises(ValueError, match="is not finished; give the same"):
        open_data(tmp_path / "halves")
    (tmp_path / "halves/.00-00002.safetensors.tmp-1").write_bytes(b"half-written")
    (tmp_path / "halves/00-00002.safetensors").write_bytes(b"not in the manifest")
    written: list[str] = []
    whole = shards.write_whole
    monkeypatch.setattr(shards, "write_whole", lambda path, data: (written.append(path.name), whole(path, data)))
    encoding.encode(open_data(tmp_path / "raw"), codecs, tmp_path / "halves")
    assert written == ["00-00002.safetensors", "00-00003.safetensors"]
    for path in (tmp_path / "straight").iterdir():
        assert (tmp_path / "halves" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "halves").glob(".*"))


def test_a_finished_encoding_is_left_as_it_is_and_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 5))
    codecs = encoding.fitted(raw)
    encoding.encode(raw, codecs, tmp_path / "out")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/00-00001.safetensors").write_bytes(whole["00-00001.safetensors"][:-1] + b"x")
    with pytest.raises(ValueError, match=r"00-00001\.safetensors is damaged"):
        open_data(tmp_path / "out")
    assert check(open_data(tmp_path / "out", verify=False))["usable"] is False
    encoding.encode(raw, codecs, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    assert check(open_data(tmp_path / "out"))["usable"] is True


def elsewhere(work: Any, places: Any) -> Any:
    """Carries work out as another process would: by a copy, from plain values, in another order."""
    copy = pickle.loads(pickle.dumps(work))
    return (json.loads(json.dumps(copy(json.loads(json.dumps(place))))) for place in reversed(places))


def test_copies_elsewhere_make_the_same_bytes_in_any_order_and_only_what_is_missing(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "raw", 9)
    (folder / "3.png").write_bytes(b"x")
    codecs = encoding.fitted(open_data(folder))
    encoding.encode(open_data(folder), codecs, tmp_path / "here")
    encoding.encode(open_data(folder), codecs, tmp_path / "there", carry=elsewhere)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == whole
    (tmp_path / "there/00-00001.safetensors").write_bytes(b"x")
    (tmp_path / "there/00-00003.safetensors").unlink()
    asked: list[Any] = []
    again = open_data(folder)
    encoding.encode(
        again, codecs, tmp_path / "there", carry=lambda work, places: (asked.extend(places), elsewhere(work, places))[1]
    )
    assert asked == [(0, 1), (0, 3)] and again.sources[0].cases.tally.bad() == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == whole


def test_a_copy_that_sees_other_codecs_refuses(tmp_path: Path) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 3))

    def tampered(work: Any, places: Any) -> Any:
        config = json.loads((tmp_path / "out/codecs.json").read_text())
        config["codecs"]["image"]["config"]["size"] = 16
        (tmp_path / "out/codecs.json").write_text(json.dumps(config))
        return elsewhere(work, places)

    with pytest.raises(ValueError, match="are not those of this encoding; is the folder shared"):
        encoding.encode(raw, encoding.fitted(raw), tmp_path / "out", carry=tampered)


def test_latents_of_other_codecs_or_other_data_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 3))
    codecs = encoding.fitted(raw)
    encoding.encode(raw, codecs, tmp_path / "out")
    other = {**codecs, "image": Image.fit([], size=16)}
    text = codecs["text"]
    assert isinstance(text, Text)
    one_bit = {**codecs, "text": Text(text.tokenizer, text.codes.nextafter(torch.tensor(9.0)), text.length)}
    assert len({codec_key(each) for each in (codecs, other, one_bit)}) == 3
    for changed in (other, one_bit):
        with pytest.raises(ValueError, match="holds latents of other codecs; choose another place, or use force"):
            encoding.encode(raw, changed, tmp_path / "out")
    picture_folder(tmp_path / "raw", 4)
    with pytest.raises(ValueError, match="holds latents of other data"):
        encoding.encode(open_data(tmp_path / "raw"), codecs, tmp_path / "out")
    with pytest.raises(ValueError, match="another number format"):
        encoding.encode(raw, codecs, tmp_path / "out", stored="float16")
    monkeypatch.setattr(encoding, "MOST_ROWS", 3)
    with pytest.raises(ValueError, match="another number of rows a shard"):
        encoding.encode(raw, codecs, tmp_path / "out")
    encoding.encode(raw, other, tmp_path / "out", force=True)
    ours = open_data(tmp_path / "out")
    assert ours.pairs[0]["image"].shape == (3, 16, 16)
    again = load_codecs(tmp_path / "out")
    assert codec_key(again) == codec_key(other) == read_manifest(tmp_path / "out").codecs


def test_codecs_that_are_not_those_of_the_latents_are_refused(tmp_path: Path) -> None:
    encoded(picture_folder(tmp_path / "raw", 3), tmp_path / "out")
    config = json.loads((tmp_path / "out/codecs.json").read_text())
    config["codecs"]["image"]["config"]["size"] = 16
    (tmp_path / "out/codecs.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="are not of the codecs beside them"):
        open_data(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "codecs.safetensors").unlink(), "holds no fitted codecs"),
        (lambda out: (out / "codecs.json").write_text("{"), "codecs in .* are damaged"),
        (lambda out: (out / "codecs.safetensors").write_bytes(b"x"), "the checksum differs.; encode the data again"),
        (lambda out: (out / "00-00000.safetensors").unlink(), "is missing or cut short"),
        (lambda out: (out / "00-00000.safetensors").write_bytes(b"x"), "is missing or cut short"),
    ],
)
def test_damaged_encoded_data_are_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    encoded(picture_folder(tmp_path / "raw", 3), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "out")


def test_encoded_data_that_are_gone_are_lost_after_a_few_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = encoded(picture_folder(tmp_path / "raw", 5), tmp_path / "out")
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    (tmp_path / "out").rename(tmp_path / "away")
    with pytest.raises(DataLost, match="cannot be read any more"):
        ours.pairs[3]
    assert waited == list(files.WAITS)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    encoded(picture_folder(tmp_path / "raw", 3), tmp_path / "out")
    text = (tmp_path / "out" / MANIFEST).read_text()
    for name in ("../x.safetensors", "/etc/passwd", "a/../b"):
        (tmp_path / "out" / MANIFEST).write_text(text.replace("00-00000.safetensors", name))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            open_data(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text(text.replace("latents 1", "latents 2"))
    with pytest.raises(ValueError, match="another version"):
        open_data(tmp_path / "out")


def test_damaged_rows_are_left_out_and_counted_also_when_going_on(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "raw", 20)
    (folder / "3.png").write_bytes(b"x")
    raw = open_data(folder)
    codecs = encoding.fitted(raw)
    manifest = encoding.encode(raw, codecs, tmp_path / "out")
    assert [shard.rows for shard in manifest.sources[0].shards] == [2, 1, *[2] * 8]
    ours = open_data(tmp_path / "out")
    assert ours.samples == 19 and sum(f["count"] for f in ours.report()["sources"][0]["damaged"].values()) == 1
    for k in (5, 6):
        (folder / f"{k}.png").write_bytes(b"x")
    with pytest.raises(DataLost, match="more than the budget"):
        encoding.encode(open_data(folder), codecs, tmp_path / "again")
    few = {**codecs, "text": Text.fit(["picture 1", "picture 2"], length=3)}
    with pytest.raises(DataLost, match="its codec does not take it: the word"):
        encoding.encode(open_data(picture_folder(tmp_path / "words", 9)), few, tmp_path / "few")


def test_half_precision_is_the_latent_rounded(tmp_path: Path) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 3))
    codecs = encoding.fitted(raw)
    for stored, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        encoding.encode(raw, codecs, tmp_path / stored, stored=stored)  # type: ignore[arg-type]
        got, expected = open_data(tmp_path / stored).pairs[2], as_streams(raw, 2, codecs)
        assert all(torch.equal(got[name], x.to(dtype).float()) for name, x in expected.items())


def test_what_is_in_the_way_is_never_removed(tmp_path: Path) -> None:
    raw = open_data(picture_folder(tmp_path / "raw", 3))
    codecs = encoding.fitted(raw)
    write(tmp_path / "mine", {"thesis.txt": "years"})
    (tmp_path / "file").write_text("x")
    for place in ("mine", "file", "raw"):
        for force in (False, True):
            with pytest.raises(ValueError, match="is there already and holds no encoded data"):
                encoding.encode(raw, codecs, tmp_path / place, force=force)
    encoding.encode(raw, codecs, tmp_path / "out")
    write(tmp_path / "out", {"notes.txt": "mine"})
    encoding.encode(raw, codecs, tmp_path / "out", stored="float16", force=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_raw_data_only_and_a_codec_for_each_modality(tmp_path: Path) -> None:
    raw, ours = encoded(tar(tmp_path / "raw/0.tar", shard_members(range(3))).parent, tmp_path / "out")
    assert ours.codecs is not None
    with pytest.raises(ValueError, match="are encoded already"):
        encoding.encode(ours, ours.codecs, tmp_path / "again")
    with pytest.raises(ValueError, match="there is no codec for 'text'; there are codecs for image"):
        encoding.encode(raw, {"image": ours.codecs["image"]}, tmp_path / "again")
    with pytest.raises(ValueError, match="encoded data are opened alone"):
        open_data([tmp_path / "out", tmp_path / "raw"])

"""Cut a data set into what a recipe trains on and what judges it: OUT/train and OUT/held, each a folder of its own.

    python runs/split.py emoji FOLDER OUT      pictures and names in metadata.jsonl
    python runs/split.py digits FOLDER OUT     written_digits/digits.npz (images, labels), spoken_digits/metadata.jsonl
    python runs/split.py cifar10 FOLDER OUT    train.parquet (image, text)

Of emoji, what is held back are combinations: of every name that comes in five skin tones, one tone, so that the person
and the tone are both seen and never together. Of the others it is every tenth row, and of the recordings every tenth of
each speaker. What is held back depends on names and places alone. Files that are there already are left as they are.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

TONES = tuple(f" {tone} skin tone" for tone in ("medium-light", "medium-dark", "light", "medium", "dark"))
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = ("train", "held")


def emoji(source: Path, out: Path) -> None:
    """64 x 64 pictures and names."""
    rows = read_rows(source / "metadata.jsonl")
    tones: dict[str, list[str]] = {}
    for row in rows:
        if (tone := next((tone for tone in TONES if row["text"].endswith(tone)), None)) is not None:
            tones.setdefault(row["text"].removesuffix(tone), []).append(tone)
    unseen = {
        base + sorted(found)[int(hashlib.sha256(base.encode()).hexdigest(), 16) % len(found)]
        for base, found in tones.items()
        if len(found) == len(TONES)
    }
    for part in PARTS:
        chosen = [row for row in rows if (row["text"] in unseen) == (part == "held")]
        write_folder(source, out / part, chosen)
        declare(out / part, {"modalities": {"image": {"kind": "image", "size": 64}, "text": {"kind": "text"}}})


def digits(source: Path, out: Path) -> None:
    """Written digit, spoken digit and word, paired by class."""
    import numpy as np

    arrays = np.load(source / "written_digits" / "digits.npz")
    spoken = read_rows(source / "spoken_digits" / "metadata.jsonl")
    take = {"train": lambda k: k % 10 != 9, "held": lambda k: k % 10 == 9}
    for part in PARTS:
        here = out / part
        (here / "written").mkdir(parents=True, exist_ok=True)
        rows = [k for k in range(len(arrays["labels"])) if take[part](k)]
        np.savez(here / "written" / "digits.npz", **{name: arrays[name][rows] for name in ("images", "labels")})
        write_folder(source / "spoken_digits", here / "spoken", [r for r in spoken if take[part](_recording(r))])
        write_lines(here / "words" / "metadata.jsonl", ({"word": word, "digit": k} for k, word in enumerate(WORDS)))
        keys = {word: k for k, word in enumerate(WORDS)}
        written = {"path": "written/digits.npz", "columns": {"image": "images"}, "join": "labels"}
        sound = {"path": "spoken", "columns": {"sound": "file_name"}, "join": {"column": "text", "keys": keys}}
        words = {"path": "words", "columns": {"text": "word"}, "join": "digit"}
        kinds = {
            "image": {"kind": "image", "size": 32, "channels": 1},
            "sound": {"kind": "sound", "sample_rate": 8000, "frames": 64},
            "text": {"kind": "text"},
        }
        declare(here, {"modalities": kinds, "sources": [written, sound, words]})


def cifar10(source: Path, out: Path) -> None:
    """32 x 32 pictures with the names of their classes."""
    import pyarrow.parquet as pq

    table = pq.read_table(source / "train.parquet")
    for part in PARTS:
        rows = [k for k in range(len(table)) if (k % 10 == 9) == (part == "held")]
        (out / part).mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(rows), out / part / "pairs.parquet", row_group_size=200)
        declare(out / part, {"modalities": {"image": {"kind": "image", "size": 32}, "text": {"kind": "text"}}})


def _recording(row: Mapping[str, Any]) -> int:
    """The number of a recording among those of its speaker and digit: 7 of 3_george_7.wav."""
    return int(Path(row["file_name"]).stem.rpartition("_")[2])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_folder(source: Path, target: Path, rows: list[dict[str, Any]]) -> None:
    """Copy the files that rows name, and the rows beside them."""
    target.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if not (place := target / row["file_name"]).exists():
            shutil.copyfile(source / row["file_name"], place)
    write_lines(target / "metadata.jsonl", rows)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def declare(folder: Path, declaration: Mapping[str, Any]) -> None:
    """Say what lies in a folder; one source is the folder itself."""
    (folder / "data.json").write_text(json.dumps(declaration, indent=1) + "\n", encoding="utf-8")


KINDS: dict[str, Callable[[Path, Path], None]] = {"emoji": emoji, "digits": digits, "cifar10": cifar10}


def main() -> int:
    """Cut one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}; give the one that holds the data")
    try:
        KINDS[args.kind](args.folder, args.out)
    except ImportError as error:
        parser.error(f"{args.kind} needs {error.name}: pip install 'unidiffuser[data]'")
    except FileNotFoundError as error:
        parser.error(f"{args.folder} is not the folder of {args.kind}: it has no {error.filename}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

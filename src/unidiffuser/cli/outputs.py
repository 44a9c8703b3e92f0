"""Where samples go: one file a modality and sample, 0000.png, 0000.txt, ..., and samples.json beside them.

Nothing is overwritten unless forced, and that is known before anything is sampled. A file is written beside its place
and renamed, so that there is never half a picture. It does not know how a sample is made.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from unidiffuser.marking import mark_info, watermarked
from unidiffuser.modalities import Modality
from unidiffuser.recipe import Recipe, png_info

LIST = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A folder for samples, or none at all."""

    folder: Path | None
    """None: nothing is written."""
    codecs: Mapping[str, Modality[Any]]
    """Modality -> codec, of all that may be written."""
    force: bool = False
    """Whether files that are there may be overwritten."""
    marked: bool = False
    """Whether pictures are marked as synthetic, for machines."""
    words: str = ""
    """What is drawn into pictures; empty: nothing."""

    def path(self, stem: str, name: str) -> Path:
        """The file of one value; modalities that share a suffix carry their names in it."""
        assert self.folder is not None
        suffix = self.codecs[name].suffix
        shared = [codec.suffix for codec in self.codecs.values()].count(suffix) > 1
        return self.folder / (f"{stem}.{name}{suffix}" if shared else f"{stem}{suffix}")

    def reserve(self, stems: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Check that the files of each stem and the list are not there; ValueError names the first that is."""
        if self.folder is None:
            return
        for path in [*(self.path(stem, name) for stem, names in stems for name in names), self.folder / LIST]:
            if path.is_dir() or (path.exists() and not self.force):
                cure = "choose another --out" if path.is_dir() else "use --force to overwrite it, or another --out"
                raise ValueError(f"{path} is there already; {cure}")

    def write(self, stem: str, values: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
        """Write values; a picture carries the recipe. Returns what JSON shows: a text itself, else the file's path."""
        shown: dict[str, Any] = {}
        for name, value in values.items():
            codec = self.codecs[name]
            if self.folder is not None:
                with beside(self.path(stem, name)) as place:
                    if codec.media_type == "image":
                        write_picture(value, place, recipe, marked=self.marked, words=self.words)
                    else:
                        codec.write(value, place)
            shown[name] = value if codec.media_type == "text" else str(self.path(stem, name))
        return shown

    def write_list(self, answer: Mapping[str, Any]) -> None:
        """Write samples.json."""
        if self.folder is not None:
            with beside(self.folder / LIST) as place:
                text = json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False)
                place.write_text(text + "\n", encoding="utf-8")


def write_picture(
    picture: PIL.Image.Image, path: Path, recipe: Recipe | None = None, *, marked: bool = False, words: str = ""
) -> None:
    """Write a PNG, with its recipe if there is one, which marks it as synthetic, or with the mark alone."""
    info = png_info(recipe) if recipe else mark_info() if marked else None
    watermarked(picture, words).save(path, format="PNG", pnginfo=info)


def heat(values: np.ndarray[Any, Any], side: int = 256) -> PIL.Image.Image:
    """Numbers (H, W) as a picture: white is 0, orange above, blue below, the strongest as strong as it gets."""
    strength = np.clip(values / max(float(np.abs(values).max()), 1e-12), -1, 1)[..., None]
    colour = np.where(strength > 0, np.array([205, 92, 8]), np.array([24, 90, 188]))
    pixels = np.round(255 + np.abs(strength) * (colour - 255.0)).astype(np.uint8)
    return PIL.Image.fromarray(pixels).resize((side, side), PIL.Image.Resampling.NEAREST)


def fresh_folder(parent: str | Path = "out") -> Path:
    """The first of out/0000, out/0001, ... that is not there yet."""
    taken = {path.name for path in Path(parent).iterdir()} if Path(parent).is_dir() else set()
    return Path(parent) / next(name for name in (f"{k:04d}" for k in range(len(taken) + 1)) if name not in taken)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place beside a file, which becomes the file when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield place
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)

"""COCO captions: a JSON file of pictures and of captions that refer to them.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}, ...],
     "annotations": [{"image_id": 9, "caption": "A plate of food."}, ...]}

The file is read piece by piece and never held whole. All captions of a picture are used. Captions without a picture and
a second picture of the same id are counted and left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unidiffuser import strict_json
from unidiffuser.datasets.faults import Tally, listed
from unidiffuser.datasets.files import Tree, scan, training_part
from unidiffuser.datasets.rows import FileRows, Packed
from unidiffuser.datasets.tables import sha256

ANNOTATIONS = "annotations"
"""The usual folder of caption files, beside those of the pictures."""

PIECE = 2**20
MAX_ITEM = 2**20
PROBED = 20


def captions(tree: Tree) -> list[str]:
    """The JSON files of a folder, or of `annotations/` in it, that hold COCO captions."""
    near = [name for name in tree.suffixed(".json") if "/" not in name.removeprefix(f"{ANNOTATIONS}/")]
    return [name for name in near if "caption" in name.lower() or _begins_like_captions(tree.root / name)]


def _begins_like_captions(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4096)
    others = re.match(r"(instances|person_keypoints|panoptic|stuff)_", path.name)
    return not others and (b'"images"' in start or b'"annotations"' in start)


def open_coco(root: Path, tally: Tally, names: list[str] | None = None) -> FileRows:
    """The pictures of one caption file below a folder, or of the named one, with their captions.

    Raises:
        ValueError: there are several such files, or it is damaged, or its pictures are not to be found.
    """
    tree = scan(root)
    used, held_out = training_part(names or captions(tree))
    for name in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", name)
    if len(used) != 1:
        raise ValueError(f"{root} holds {len(used)} caption files ({listed(used)}); declare each as a source")
    images, said = _read(tree.root / used[0], tally)
    for row, texts in said.items():
        if row not in images:
            tally.count("damaged", "its captions refer to a picture that the file does not list", str(row), len(texts))
    place = _place(tree, list(images.values()), used[0])
    rows = Packed()
    for row, name in images.items():
        if (found := tree.find(name, place)) is None:
            tally.count("damaged", "its picture is not there", name)
        else:
            rows.append({"image": found, "text": said.get(row, [])})
    return FileRows(
        format="coco",
        root=root,
        rows=rows,
        columns=["image", "text"],
        files={"image"},
        defaults={"image": "image", "text": "text"},
        identity={used[0]: sha256(root / used[0])},
    )


def _read(path: Path, tally: Tally) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Picture id -> file name, and picture id -> captions."""
    images: dict[Any, str] = {}
    said: dict[Any, list[str]] = {}
    for part, item in _items(path):
        if part == "images":
            key, name = item.get("id"), item.get("file_name")
            if not isinstance(key, int | str) or not isinstance(name, str):
                tally.count("damaged", "a picture without an id or a file_name", str(key))
            elif key in images:
                tally.count("damaged", "a second picture of the same id", name)
            else:
                images[key] = name
        elif part == "annotations":
            key, caption = item.get("image_id"), item.get("caption")
            if not isinstance(key, int | str) or not isinstance(caption, str):
                tally.count("damaged", "a caption without an image_id or a text", str(item.get("id")))
            else:
                said.setdefault(key, []).append(caption)
    if not images:
        raise ValueError(f"{path} lists no pictures; COCO captions have 'images' and 'annotations'")
    return images, said


def _place(tree: Tree, names: list[str], captions_file: str) -> str:
    """The folder that holds the pictures: the one in which the first of them are found."""
    wanted = [PurePosixPath(name).name for name in names[:PROBED]]
    holding: dict[str, int] = {}
    for name in tree.sizes:
        folder, _, last = name.rpartition("/")
        if last in wanted:
            holding[folder] = holding.get(folder, 0) + 1
    most = [folder for folder, count in holding.items() if count == max(holding.values())]
    if len(most) > 1:
        raise ValueError(
            f"the pictures of {tree.root / captions_file} lie in each of {listed(most)}; keep one copy of them"
        )
    # a name may itself begin with folders, which are then part of where it was found
    own = str(PurePosixPath(names[0]).parent).removeprefix(".")
    return most[0].removesuffix(own).rstrip("/") if most else ""


def _items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, object) for every object in a list at the top of a JSON file, reading piece by piece.

    Raises: ValueError if the file is not such JSON, or cut short.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = _Text(file, path)
        text.expect("{")
        while text.peek() != "}":
            part = text.value()
            text.expect(":")
            if text.peek() != "[":
                text.value()
            else:
                text.expect("[")
                while text.peek() != "]":
                    item = text.value()
                    if isinstance(item, dict):
                        yield str(part), item
                    text.skip(",")
                text.expect("]")
            text.skip(",")


class _Text:
    """A long JSON text of which a small part is in memory."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        self.held, self.at = "", 0

    def peek(self) -> str:
        """The next character that is no blank."""
        while True:
            match = re.compile(r"\s*").match(self.held, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.held):
                return self.held[self.at]
            if not self._more():
                raise self._damaged("it ends too early")

    def expect(self, character: str) -> None:
        """Go past a character that must come."""
        if self.peek() != character:
            raise self._damaged(f"{character!r} is missing")
        self.at += 1

    def skip(self, character: str) -> None:
        """Go past a character if it comes."""
        if self.peek() == character:
            self.at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = strict_json.parse_at(self.held, self.at)
                if end < len(self.held) or not self._more():  # a number may go on in the next piece
                    self.at = end
                    return value
            except ValueError as error:
                if len(self.held) - self.at > MAX_ITEM or not self._more():
                    raise self._damaged(str(error)[:80]) from error

    def _more(self) -> bool:
        try:
            piece = self.file.read(PIECE)
        except UnicodeDecodeError as error:
            raise self._damaged("it is not text in UTF-8") from error
        self.held, self.at = self.held[self.at :] + piece, 0
        return bool(piece)

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.path} is damaged ({why}); get a whole copy of it")

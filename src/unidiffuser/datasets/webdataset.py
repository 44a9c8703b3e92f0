"""Webdataset shards, as img2dataset writes them: tar archives whose members of one key are one sample.

    00000.tar: 000000000.jpg 000000000.txt 000000000.json     00000.parquet     00000_stats.json

Access is random, through an index of the members' places that is made when the shards are opened. Only pictures
(.jpg, .jpeg, .png, .webp), .wav, .txt and .json are ever decoded; any other member (.pkl, .npy, .pt, ...) is counted
and left alone. The key of a sample is its name up to the last dot; members of a key need not lie together.
A row has the columns `image`, `sound`, `txt`, every key of the .json, and every column of the parquet file beside it.
How many samples a shard holds is compared with what its parquet and its stats say were written.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

from unidiffuser import strict_json
from unidiffuser.datasets import tar
from unidiffuser.datasets.faults import Damaged, Tally
from unidiffuser.datasets.files import PICTURES, SOUNDS, Blob, Tree, inside, scan, training_part
from unidiffuser.datasets.rows import Columns, Packed, find_column, refused

COLUMNS = {**dict.fromkeys(PICTURES, "image"), **dict.fromkeys(SOUNDS, "sound"), ".txt": "txt", ".json": "json"}
"""Ending -> column."""
MAX_JSON = 2**22


def shards(tree: Tree) -> list[str]:
    """The tar archives of a folder."""
    return tree.suffixed(".tar")


def open_webdataset(
    root: Path, tally: Tally, names: list[str] | None = None, wanted: Collection[str] = ()
) -> "ShardRows":
    """The rows of the shards below a folder, or of the named ones; `wanted` are columns that will be asked for."""
    tree = scan(root, deep=not names)
    used, held_out = training_part(names or shards(tree))
    for name in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", name)
    return ShardRows(tree, used, tally, wanted)


class ShardRows:
    """The samples of some shards."""

    format = "webdataset"

    def __init__(self, tree: Tree, names: list[str], tally: Tally, wanted: Collection[str]) -> None:
        self.root, self.names = tree.root, names
        self.rows, self.sidecar = Packed(), Packed()
        self.identity: Mapping[str, Any] = {name: tree.sizes[name] for name in names}
        counts: list[_Count] = []
        members: set[str] = set()
        about: dict[str, None] = {}
        for number, name in enumerate(names):
            samples, broken = _grouped(tree.root / name, tally)
            side = _Sidecar(tree, name, wanted)
            counts.append(_Count(name, len(samples), broken, side.expected))
            about |= side.columns
            for key, places in samples.items():
                self.rows.append({"shard": number, "key": key, "at": places})
                self.sidecar.append(side.rows.get(key, {}))
                members |= places.keys()
        _compare(counts, tally)
        self.defaults, self.columns = self._defaults(members, about)

    def _defaults(self, members: set[str], about: dict[str, None]) -> tuple[Columns, tuple[str, ...]]:
        described = self._first_json() if "json" in members else {}
        columns = (*sorted(members - {"json"}), *(dict.fromkeys(described) | about))
        self.heavy: Collection[str] = [name for name in described if name not in about]
        found: dict[str, str | list[str]] = {name: name for name in ("image", "sound") if name in members}
        if text := "txt" if "txt" in members else find_column("text", columns):
            found["text"] = text
        return found, columns

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Shard and key."""
        entry = self.rows[row]
        return f"{self.names[entry['shard']]}:{entry['key']}"

    def cells(self, row: int, columns: Collection[str]) -> dict[str, Any]:
        """Column -> cell; the .json is read if a column is neither a member's nor the parquet's."""
        entry, beside = self.rows[row], self.sidecar[row]
        found: dict[str, Any] = {}
        described: dict[str, Any] | None = None
        for name in columns:
            if name in entry["at"] and name != "json":
                found[name] = self._blob(entry, name)
            elif name in beside or name in COLUMNS.values():
                found[name] = beside.get(name)
            else:
                described = self._json(row) if described is None else described
                found[name] = described.get(name)
        return found

    def column(self, name: str) -> Iterator[Any]:
        """The cell of every row."""
        for row in range(len(self)):
            try:
                yield self.cells(row, [name])[name]
            except Damaged as error:
                yield refused(str(error))

    def _blob(self, entry: dict[str, Any], name: str) -> Blob:
        offset, size = entry["at"][name]
        return Blob(self.root / self.names[entry["shard"]], self.root, offset, size)

    def _first_json(self) -> dict[str, Any]:
        """The first .json that is whole, to know its columns."""
        for row in range(min(len(self), 100)):
            with suppress(Damaged):
                if value := self._json(row):
                    return value
        return {}

    def _json(self, row: int) -> dict[str, Any]:
        entry = self.rows[row]
        if "json" not in entry["at"]:
            return {}
        if entry["at"]["json"][1] > MAX_JSON:
            raise Damaged("its .json is larger than 4 MiB")
        data = self._blob(entry, "json").read()
        try:
            value = strict_json.parse(data)
        except ValueError as error:
            raise Damaged("its .json is damaged") from error
        if not isinstance(value, dict):
            raise Damaged("its .json is no object")
        return value


def _grouped(path: Path, tally: Tally) -> tuple[dict[str, dict[str, list[int]]], tar.Broken | None]:
    """Key -> column -> [offset, size] of one shard, and where it is broken, if it is."""
    samples: dict[str, dict[str, list[int]]] = {}
    for member in tar.index(path):
        if isinstance(member, tar.Broken):
            _drop_unfinished(samples)
            return samples, member
        if isinstance(member, tar.Passed):
            tally.count("ignored", member.why, f"{path.name}:{member.name}")
            continue
        try:
            name = inside(member.name.encode("utf-8", "surrogateescape").decode("utf-8"))
        except ValueError:
            tally.count("damaged", "the name of a member is not UTF-8, or leads out of its folder", path.name)
            continue
        column = COLUMNS.get(suffix := PurePosixPath(name).suffix.lower())
        key = name[: len(name) - len(suffix)]
        if column is None:
            tally.count("ignored", f"members {suffix or 'without an ending'} are never decoded", f"{path.name}:{name}")
        elif member.size == 0 and column != "txt":
            tally.count("damaged", "a member has no bytes", f"{path.name}:{name}")
        elif column in samples.setdefault(key, {}):
            tally.count("damaged", "a second member of the same key and kind", f"{path.name}:{name}")
        else:
            samples[key][column] = [member.offset, member.size]
    return samples, None


def _drop_unfinished(samples: dict[str, dict[str, list[int]]]) -> None:
    """Take out the last sample before a break if it has fewer members than the first."""
    if len(samples) > 1 and len(samples[last := next(reversed(samples))]) < len(next(iter(samples.values()))):
        del samples[last]


class _Sidecar:
    """What lies beside a shard: 00000.parquet, a row a download, and 00000_stats.json."""

    def __init__(self, tree: Tree, shard: str, wanted: Collection[str]) -> None:
        stem = shard[: -len(".tar")]
        self.shard, self.wanted = shard, {*wanted, "text"}
        self.expected: int | None = None
        self.rows: dict[str, dict[str, Any]] = {}
        self.columns: dict[str, None] = {}
        if f"{stem}_stats.json" in tree.sizes:
            self.expected = self._successes(tree.root / f"{stem}_stats.json")
        if f"{stem}.parquet" in tree.sizes:
            self._read_parquet(tree.root / f"{stem}.parquet")

    def _successes(self, path: Path) -> int | None:
        try:
            stats = strict_json.parse(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, or get a whole copy") from error
        count = stats.get("successes") if isinstance(stats, dict) else None
        return count if isinstance(count, int) else None

    def _read_parquet(self, path: Path) -> None:
        from unidiffuser.datasets.parquet import checked, plain_rows

        columns, _ = checked(path)
        self.columns = dict.fromkeys(columns)
        kept = {found for name in self.wanted if (found := find_column(name, columns))}
        written = 0
        for row in plain_rows(path, sorted(kept | ({"key", "status"} & set(columns)))):
            if row.get("status", "success") == "success":
                written += 1
                if isinstance(row.get("key"), str):
                    self.rows[row["key"]] = {name: row[name] for name in kept}
        self.expected = written if self.expected is None else max(written, self.expected)


@dataclass(frozen=True)
class _Count:
    """How many samples a shard holds, where it is broken, and how many were written to it, if anything says so."""

    shard: str
    there: int
    broken: tar.Broken | None
    expected: int | None


def _compare(counts: Sequence[_Count], tally: Tally) -> None:
    """Count what is lost: exactly, if what lies beside a shard says how many there were; else it is guessed.

    The guess is the larger of what the other shards hold and of what the bytes behind the break would.
    """
    usual = [count.there for count in counts if count.broken is None]
    for count in counts:
        missing = max(0, (count.expected or 0) - count.there)
        if count.broken is None:
            if missing:
                tally.count("lost", "the shard holds fewer samples than were written to it", count.shard, missing)
        elif count.expected is not None:
            tally.count("lost" if missing else "noted", count.broken.why, count.shard, max(1, missing))
        else:
            by_others = round(median(usual)) - count.there if usual else 0
            by_bytes = round(count.broken.left * count.there / count.broken.offset) if count.broken.offset else 0
            reason = f"{count.broken.why} (how many are lost is a guess)"
            tally.count("lost", reason, count.shard, max(1, by_others, by_bytes))

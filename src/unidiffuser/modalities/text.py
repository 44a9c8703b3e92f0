"""Text: a sentence <-> a sequence of L token latents, one of V fixed code vectors of D numbers each.

A tokenizer is trained on the user's captions: every distinct word a token if there are few of them, otherwise
byte-level BPE, which can write any text. Token i has the code c_i, a row of a table (V, D) that is found once, at
`fit`, by letting the rows repel each other on the sphere, then shifted and scaled so that the token latents of the
captions have mean zero and, averaged over the dimensions, variance one. Encoding looks codes up; decoding takes the
nearest code in Euclidean distance, the lowest token at a tie. Token 0 is the end: it follows a sentence and fills the
sequence up to its length, so the model learns where sentences stop.

Text is kept as it is (no lower-casing), except that runs of blanks, tabs and line breaks become one blank.
It does not know what words mean: no code is nearer to one word than to another on purpose.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from unidiffuser.modalities import Modality, check_whole, expect_keys, expect_shape

END = 0
BLANK = "___"
MAX_CHARACTERS = 20_000
MAX_LENGTH = 4096
MAX_WORDS = 4096
REPULSION_STEPS = 400
REPULSION_ROWS = 1024


class Text(Modality[str]):
    """A sentence as L codes of D numbers, drawn from a table of V codes."""

    kind: ClassVar[str] = "text"
    media_type: ClassVar[str] = "text"
    suffix: ClassVar[str] = ".txt"

    def __init__(self, tokenizer: Tokenizer, codes: Tensor, length: int) -> None:
        """A trained tokenizer of V - 1 tokens, the codes (V, D) of the end and of these, and the length L."""
        self.tokenizer = tokenizer
        self.codes = codes
        self.length = length

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """One sequence (L, D)."""
        return {"": (self.length, self.codes.shape[1])}

    @property
    def vocabulary(self) -> list[str]:
        """The text of every token; a token that begins a word begins with a blank. The end is the empty text."""
        return ["", *(self.tokenizer.decode([i]) for i in range(self.tokenizer.get_vocab_size()))]

    def check(self, raw: Any) -> str:
        """The sentence with single blanks; ValueError if it is empty, too long, not text, or has unknown words."""
        text = plain(raw)
        self._check_words(text)
        self._check_length(len(self.tokenizer.encode(text).ids))
        return text

    def tokens(self, raw: str) -> Tensor:
        """The token of each position of a sentence: (L,) int64, the end after its last word."""
        text = plain(raw)
        self._check_words(text)
        ids = [i + 1 for i in self.tokenizer.encode(text).ids]
        self._check_length(len(ids))
        return torch.tensor(ids + [END] * (self.length - len(ids)))

    def encode(self, raws: Sequence[str]) -> dict[str, Tensor]:
        """B sentences -> {"": (B, L, D)}."""
        tokens = [self.tokens(raw) for raw in raws]
        return {"": self.codes[torch.stack(tokens)] if tokens else self.codes.new_zeros(0, *self.streams[""])}

    def nearest(self, latents: Tensor) -> Tensor:
        """Latents (..., L, D) -> the token whose code is nearest, (..., L) int64: argmin_i |c_i|^2 / 2 - <x, c_i>."""
        codes = self.codes.to(latents)
        return (codes.square().sum(-1) / 2 - latents @ codes.T).argmin(-1)

    def decode(self, streams: Mapping[str, Tensor]) -> list[str]:
        """{"": (B, L, D)} -> B sentences, each cut at its first end; one that begins with the end is empty."""
        expect_shape("the latent of a text", streams[""], (-1, *self.streams[""]))
        sentences = []
        for row in self.nearest(streams[""]).tolist():
            ids = row[: row.index(END)] if END in row else row
            sentences.append(self.tokenizer.decode([i - 1 for i in ids]).removeprefix(" "))
        return sentences

    def empty(self) -> dict[str, Tensor]:
        """The sentence without words: the end at every position."""
        return {"": self.codes[END].expand(1, *self.streams[""]).clone()}

    def part(self, raw: Any, mask: Any = None) -> tuple[str, dict[str, Tensor]]:
        """A sentence with blanks "___" as `mask` has it; it takes no other mask."""
        if mask is not None:
            raise ValueError(f"a text takes no mask; write {BLANK} for each word to be made")
        filled, known = self.mask(raw)
        if known.all():
            raise ValueError(f"the text {filled[:80]!r} has no blank; write {BLANK} for each word to be made")
        return filled, {"": known[:, None].expand(self.streams[""]).clone()}

    def mask(self, text: str) -> tuple[str, Tensor]:
        """A sentence with blanks -> (the sentence with some word in each blank, which positions are known (L,) bool).

        Each "___" stands alone for one unknown token. The ends after the sentence are known, so it keeps its length.
        """
        parts = re.split(rf"(?<!\S){BLANK}(?!\w)", plain(text))
        if any(BLANK in part for part in parts):
            raise ValueError(f"each {BLANK} must be a word of its own, with a space before it")
        filler = self._filler() if len(parts) > 1 else ""
        filled = self.check(filler.join(parts))
        starts = [len(filler.join(parts[:i])) for i in range(1, len(parts))]
        known = [
            all(end <= start or first >= start + len(filler) for start in starts)
            for first, end in self.tokenizer.encode(filled).offsets
        ]
        return filled, torch.tensor(known + [True] * (self.length - len(known)))

    def read(self, path: str | Path) -> str:
        """The sentence in a UTF-8 text file."""
        return self.check(read_text(path))

    def write(self, raw: str, path: str | Path) -> None:
        """Write a sentence and a line break, in UTF-8."""
        write_text(raw, path)

    def config(self) -> dict[str, Any]:
        """The length and the tokenizer."""
        return {"length": self.length, "tokenizer": json.loads(self.tokenizer.to_str())}

    def state(self) -> dict[str, Tensor]:
        """The codes (V, D)."""
        return {"codes": self.codes}

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec with this tokenizer, length and codes."""
        expect_keys("config of a text modality", config, ["length", "tokenizer"])
        expect_keys("state of a text modality", state, ["codes"])
        check_whole("length of a text modality", config["length"], 1, MAX_LENGTH)
        try:
            tokenizer = Tokenizer.from_str(json.dumps(config["tokenizer"]))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValueError("the saved tokenizer of a text modality is damaged; save the model again") from error
        expect_shape("the saved table of text codes", state["codes"], (tokenizer.get_vocab_size() + 1, -1))
        return cls(tokenizer, state["codes"].float(), config["length"])

    @classmethod
    def fit(
        cls,
        raws: Iterable[Any],
        /,
        *,
        length: int | None = None,
        width: int = 16,
        max_words: int = MAX_WORDS,
        seed: int = 0,
    ) -> Self:
        """Train a tokenizer on captions and find the codes.

        length: positions L; None = the tokens of the longest caption. width: numbers D a code. max_words: up to so many
        distinct words each is a token; with more, byte-level BPE learns so many tokens. seed: of the codes.
        """
        captions = [plain(raw) for raw in raws]
        if not captions:
            raise ValueError("there are no captions to learn a text modality from; give at least one")
        check_whole("width of a text modality", width, 1, 4096)
        check_whole("max_words of a text modality", max_words, 1, 1_000_000)
        tokenizer = train_tokenizer(captions, max_words)
        rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(captions)]
        longest = max(map(len, rows))
        length = longest if length is None else length
        check_whole("length of a text modality", length, 1, MAX_LENGTH)
        if longest > length:
            raise ValueError(
                f"the longest caption has {longest} tokens but the length is {length}; give a larger length"
            )
        counts = torch.bincount(
            torch.tensor([i + 1 for row in rows for i in row]), minlength=tokenizer.get_vocab_size() + 1
        )
        counts[END] = sum(length - len(row) for row in rows)
        return cls(tokenizer, standardise(repel(len(counts), width, seed), counts), length)

    def _pieces(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The words of a text as the tokenizer cuts them, each with the blank before it (or its mark of a blank)."""
        normalizer, cutter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        return cutter.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text)

    def _check_words(self, text: str) -> None:
        """ValueError that names the words without a token; byte-level BPE has tokens for any text."""
        if not isinstance(self.tokenizer.model, models.WordLevel):
            return
        unknown = [piece.strip() for piece, _ in self._pieces(text) if self.tokenizer.token_to_id(piece) is None]
        if not unknown:
            return
        words = list(dict.fromkeys(unknown))
        named = ", ".join(repr(word[:40]) for word in words[:5]) + (", ..." if len(words) > 5 else "")
        raise ValueError(
            f"the {'words' if len(words) > 1 else 'word'} {named} {'are' if len(words) > 1 else 'is'} not in this "
            f"model's vocabulary of {self.tokenizer.get_vocab_size()} words; "
            "use other words, or train with captions that have them"
        )

    def _filler(self) -> str:
        """A word of letters that is one token, to stand in a blank."""
        for text in self.vocabulary[1:]:
            word = text.removeprefix(" ")
            if word != text and word.isalpha() and len(self.tokenizer.encode(word).ids) == 1:
                return word
        raise ValueError("no word of this model's vocabulary is one token, so a blank cannot stand for one")

    def _check_length(self, count: int) -> None:
        """ValueError if a sentence has more tokens than there are positions."""
        if count > self.length:
            raise ValueError(f"the sentence has {count} tokens; this model takes at most {self.length}: shorten it")


def plain(raw: Any) -> str:
    """A text with single blanks; ValueError unless it is a str with something in it, of sane size, without controls."""
    if not isinstance(raw, str):
        raise ValueError(f"a text must be a str, not {type(raw).__name__}")
    if len(raw) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(raw)} characters; at most {MAX_CHARACTERS} are accepted")
    text = re.sub(r"[ \t\r\n]+", " ", raw).strip(" ")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(
                f"the text contains U+{ord(character):04X}, a control character or half a surrogate pair; remove it"
            )
    if not text:
        raise ValueError("the text is empty; give at least one word")
    return text


def read_text(path: str | Path) -> str:
    """What a UTF-8 text file says; ValueError if it is too large or something else."""
    with open(path, "rb") as file:
        data = file.read(4 * MAX_CHARACTERS + 1)
    if len(data) > 4 * MAX_CHARACTERS:
        raise ValueError(f"the file {path} is too large for a text; at most {4 * MAX_CHARACTERS} bytes are accepted")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file {path} is not text in UTF-8; save it as UTF-8") from error


def write_text(raw: str, path: str | Path) -> None:
    """Write a sentence and a line break, in UTF-8."""
    Path(path).write_text(raw + "\n", encoding="utf-8", newline="\n")


def train_tokenizer(captions: list[str], max_words: int) -> Tokenizer:
    """Word level if the captions have at most max_words distinct words, else byte-level BPE of max_words tokens.

    A word carries the blank before it (as in GPT-2), and a blank is put before the text: so tokens are joined to the
    text again without a rule for blanks, and "circle," is "circle" and "," wherever it stands.
    """
    tokenizer = Tokenizer(models.WordLevel(vocab={}, unk_token=""))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+(?:['’-]\w+)*| ?[^\w\s]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=max_words + 1, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() <= max_words:
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = max(max_words, len(alphabet))
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def repel(count: int, width: int, seed: int) -> Tensor:
    """`count` unit vectors (count, width) that lie far apart: Adam on log sum_{j != i} exp(b <c_i, c_j>), b 4 to 64.

    With many rows every step moves a random part of them, so that the table of products stays small.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, width, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([codes], lr=0.05)
    with torch.enable_grad():
        for step in range(REPULSION_STEPS if count > 1 else 0):
            sharpness = 4.0 * 16 ** (step / REPULSION_STEPS)
            rows = torch.randperm(count, generator=generator)[:REPULSION_ROWS]
            chosen = F.normalize(codes[rows], dim=1)
            cosines = chosen @ chosen.T
            others = ~torch.eye(len(rows), dtype=torch.bool)
            energy = torch.where(others, sharpness * cosines, -torch.inf).logsumexp(1).mean() / sharpness
            optimiser.zero_grad()
            energy.backward()
            optimiser.step()
    return F.normalize(codes.detach(), dim=1)


def standardise(codes: Tensor, counts: Tensor) -> Tensor:
    """Shift and scale the codes (V, D) so that tokens seen `counts` (V,) times have mean 0 and mean variance 1."""
    weight = (counts / counts.sum())[:, None]
    centred = codes - (weight * codes).sum(0)
    variance = (weight * centred.square()).sum(0).mean()
    return centred / variance.sqrt() if variance > 0 else centred

"""Text: exact round trips, the geometry of the codes, blanks, and what is refused."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unidiffuser.modalities.text import Text, repel

CAPTIONS = ["a large red circle above a small blue square", "a green star, left of it", "it's a well-known circle!"]
WORDS = Text.fit(CAPTIONS, length=12)
BYTES = Text.fit(CAPTIONS * 3, length=60, max_words=12)


def coherence(codes: torch.Tensor) -> float:
    return float((codes @ codes.T - 2 * torch.eye(len(codes))).max())


@given(st.integers(0, 2**32))
def test_every_sentence_of_known_words_comes_back(seed: int) -> None:
    text = "a" + "".join(random.Random(seed).choices(WORDS.vocabulary[1:], k=11))
    assert WORDS.check(text) == text
    assert WORDS.decode(WORDS.encode([text])) == [text]


@given(st.text(max_size=12))
def test_any_text_comes_back_from_bytes(text: str) -> None:
    try:
        canonical = BYTES.check(text)
    except ValueError as error:
        assert any(word in str(error) for word in ("empty", "control"))
        return
    assert BYTES.decode(BYTES.encode([canonical])) == [canonical]


def test_case_and_blanks() -> None:
    assert WORDS.check("  a \t large\r\nred   circle ") == "a large red circle"
    with pytest.raises(ValueError, match="the word 'A' is not in this model's vocabulary"):
        WORDS.check("A red circle")


def test_noise_below_half_the_distance_of_codes_changes_no_word() -> None:
    distances = torch.cdist(WORDS.codes, WORDS.codes) + 1e9 * torch.eye(len(WORDS.codes))
    clean = WORDS.encode(CAPTIONS)[""]
    push = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    push *= 0.49 * distances.min() / push.norm(dim=-1, keepdim=True)
    assert WORDS.decode({"": clean + push}) == CAPTIONS


def test_the_nearest_code_is_the_nearest() -> None:
    latents = torch.randn(50, 12, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(WORDS.nearest(latents), torch.cdist(latents, WORDS.codes).argmin(-1))


def test_a_tie_goes_to_the_lowest_token_and_the_first_end_cuts() -> None:
    codec = Text(WORDS.tokenizer, torch.ones_like(WORDS.codes), 12)
    assert codec.nearest(torch.zeros(1, 12, 16)).tolist() == [[0] * 12]
    a, end = WORDS.tokens("a")[:2].tolist()
    latents = WORDS.codes[torch.tensor([[a, end] + [a] * 10, [end] + [a] * 11])]
    assert WORDS.decode({"": latents}) == ["a", ""]


def test_codes_repel_to_the_known_optima() -> None:
    assert coherence(repel(17, 16, 0)) == pytest.approx(-1 / 16, abs=0.02)  # the simplex
    assert coherence(repel(32, 16, 0)) < 0.05  # the cross-polytope: 0
    assert coherence(repel(60, 16, 0)) < 0.25  # random codes have 0.7
    assert torch.equal(repel(20, 4, 3), repel(20, 4, 3))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a zebra riding a red circle", "the words 'zebra', 'riding' are not in this model's vocabulary of"),
        ("a <end> circle", "'<', 'end', '>'"),
        ("", "empty"),
        (" \n", "empty"),
        ("a " * 13, "13 tokens; this model takes at most 12"),
        ("a" * 2**20, "1048576 characters"),
        ("a\x00b", r"U\+0000"),
        ("a\x1bb", r"U\+001B"),
        ("a \ud800 b", r"U\+D800"),
        (None, "NoneType"),
        (b"a", "bytes"),
    ],
)
def test_refused(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        WORDS.check(raw)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        WORDS.encode([raw])  # type: ignore[list-item]


def test_special_words_are_plain_text_for_bytes() -> None:
    for text in ["<end>", "Ġ", "\u202e abc", "🍎‍🔥 <script>"]:
        assert BYTES.decode(BYTES.encode([text])) == [text]


@pytest.mark.parametrize(
    ("text", "blanks"), [("a ___ red circle above a small ___", [1, 7]), ("___ green ___, left", [0, 2])]
)
def test_blanks(text: str, blanks: list[int]) -> None:
    filled, known = WORDS.mask(text)
    assert [i for i in range(12) if not known[i]] == blanks
    without = WORDS.tokens(text.replace("___", "circle"))
    assert torch.equal(WORDS.tokens(filled)[known], without[known])
    assert torch.equal(WORDS.part(text)[1][""], known[:, None].expand(12, 16))


def test_blanks_of_byte_level_text_are_one_token_each() -> None:
    names = ["the n" + "".join(random.Random(k).choices("abcdefgh", k=6)) for k in range(300)]
    codec = Text.fit(names, length=20, max_words=290)
    filled, known = codec.mask("the ___ above the ___!")
    with_word = codec.tokens("the the above the the!")
    blanks = [i for i in range(20) if not known[i]]
    assert len(blanks) == 2
    assert torch.equal(codec.tokens(filled)[known], with_word[known])
    assert codec.vocabulary[with_word[blanks[0]]] == codec.vocabulary[with_word[blanks[1]]] == " the"
    with pytest.raises(ValueError, match="one token"):
        BYTES.mask("the ___ sat")


def test_what_cannot_be_given_in_part() -> None:
    with pytest.raises(ValueError, match="no blank"):
        WORDS.part("a red circle")
    with pytest.raises(ValueError, match="takes no mask"):
        WORDS.part("a ___ circle", mask="x")
    with pytest.raises(ValueError, match="zebra"):
        WORDS.part("a ___ zebra")
    for glued in ["a___b ___", "a ,___", "____", "a ___b"]:
        with pytest.raises(ValueError, match="word of its own"):
            WORDS.part(glued)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "caption.txt"
    path.write_bytes("\ufeffa red\r\ncircle\r\n".encode())
    assert WORDS.read(path) == "a red circle"
    for data, message in [(b"\xff\xfea", "UTF-8"), (b"a " * 10**6, "too large"), (b"", "empty")]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            WORDS.read(path)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([], {}, "no captions"),
        (["a", ""], {}, "empty"),
        (["a b c"], {"length": 2}, "3 tokens but the length is 2"),
        (["a"], {"width": 0}, "width"),
        (["a"], {"length": True}, "length"),
    ],
)
def test_fit_refuses(captions: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text.fit(captions, **options)  # type: ignore[arg-type]


def test_restore_refuses_a_damaged_tokenizer_and_a_wrong_table() -> None:
    config, state = WORDS.config(), WORDS.state()
    with pytest.raises(ValueError, match="tokenizer"):
        Text.restore({**config, "tokenizer": {"model": 3}}, state)
    with pytest.raises(ValueError, match="shape"):
        Text.restore(config, {"codes": state["codes"][1:]})
    with pytest.raises(ValueError, match="finite"):
        Text.restore(config, {"codes": state["codes"] * torch.inf})

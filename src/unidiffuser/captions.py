"""Words from a language model that continues a prefix: beam search, and sampling from the nucleus.

    beam search   keep the K token sequences with the largest mean log-probability
    nucleus       draw from the fewest tokens whose probabilities sum to p (Holtzman et al. 2020, arXiv 1904.09751)

The beam search is that of the released UniDiffuser (and of ClipCap, arXiv 2111.09734): a finished sequence keeps its
place with its score, all are compared by their mean log-probability, and the search ends when all K are finished. Here
all captions of a batch are searched together, and nothing that was computed is computed again.

It knows neither tokenizers nor what the prefix means.

    B captions · K beams · V tokens · T length · P prefix · D width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from unidiffuser.joint import generator


@dataclass(frozen=True, kw_only=True)
class Captioning:
    """How captions are made."""

    beams: int = 5
    """K, the sequences kept in beam search."""
    top_p: float | None = None
    """p of the nucleus, which is drawn from instead of searching; absent: search."""
    temperature: float = 1.0
    """The logits are divided by it."""
    max_tokens: int = 67
    """Captions are cut after so many tokens."""

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 64 or not 1 <= self.max_tokens <= 1000:
            raise ValueError(
                f"captions take 1 to 64 beams and 1 to 1000 tokens, not {self.beams} beams and {self.max_tokens} tokens"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, not {self.top_p}")
        if not 0 < self.temperature <= 100:
            raise ValueError(f"the temperature of captions must lie above 0 and at most at 100, not {self.temperature}")


class Continuation(Protocol):
    """What a language model remembers of R sequences, and what it says comes next."""

    logits: Tensor
    """(R, V), of the next token."""

    def take(self, rows: Tensor) -> Self:
        """The sequences of these rows (R',), in this order; a row may be taken many times."""

    def extend(self, tokens: Tensor) -> Self:
        """Every sequence with one more token, (R,)."""


def captions(begun: Continuation, end: int, how: Captioning, seeds: Sequence[int] | None = None) -> list[list[int]]:
    """The tokens of B captions, without the end.

    Args:
        begun: the B prefixes.
        end: the token that ends a caption.
        how: search or sample.
        seeds: one a caption, for sampling; 0, 1, ... if absent.
    """
    with torch.inference_mode():
        if how.top_p is None:
            tokens, lengths, _ = beam_search(begun, end, how)
            rows = [row[:n] for row, n in zip(tokens[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)]
        else:
            rows = nucleus(begun, end, how, range(len(begun.logits)) if seeds is None else seeds)
    return [row[: row.index(end)] if end in row else row for row in rows]


def beam_search(begun: Continuation, end: int, how: Captioning) -> tuple[Tensor, Tensor, Tensor]:
    """The K best sequences of every caption, best first.

    Returns:
        tokens (B, K, T), padded with 0; lengths (B, K), the end counted; mean log-probabilities (B, K).
    """
    log_p = _log_p(begun, how)
    b, v = log_p.shape
    k = min(how.beams, v)
    total, tokens = log_p.topk(k, -1)  # (B, K)
    tokens = tokens[..., None]
    lengths, done = torch.ones_like(total), tokens[..., 0] == end
    captions = torch.arange(b, device=total.device)
    state, rows, token = begun, captions.repeat_interleave(k), tokens.flatten()
    for _ in range(how.max_tokens - 1):
        if bool(done.all()):
            break
        state = state.take(rows).extend(token)
        log_p = _log_p(state, how).view(b, k, v)
        stay = torch.full_like(log_p, -torch.inf)
        stay[..., 0] = 0.0  # a finished beam has one continuation, which costs nothing
        sums = total[..., None] + torch.where(done[..., None], stay, log_p)
        lengths = torch.where(done, lengths, lengths + 1)
        mean, chosen = (sums / lengths[..., None]).flatten(1).topk(k, -1)
        source, following = chosen // v, chosen % v
        lengths, done = lengths.gather(1, source), done.gather(1, source)
        total = mean * lengths
        tokens = torch.cat([tokens.gather(1, source[..., None].expand_as(tokens)), following[..., None]], -1)
        done = done | (following == end)
        rows, token = (captions[:, None] * k + source).flatten(), following.flatten()
    mean, order = (total / lengths).sort(stable=True, dim=-1, descending=True)
    return tokens.gather(1, order[..., None].expand_as(tokens)), lengths.gather(1, order).long(), mean


def nucleus(begun: Continuation, end: int, how: Captioning, seeds: Sequence[int]) -> list[list[int]]:
    """One sequence a caption, every token drawn from the nucleus by the caption's own seed."""
    assert how.top_p is not None
    state = begun
    rows: list[list[int]] = [[] for _ in seeds]
    for step in range(how.max_tokens):
        p, order = _log_p(state, how).exp().sort(-1, descending=True)
        before = p.cumsum(-1) - p
        p = torch.where(before < how.top_p, p, 0.0)
        u = torch.stack([torch.rand((), generator=generator(seed, "caption", step)) for seed in seeds]).to(p)
        place = (p.cumsum(-1) < u[:, None] * p.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        token = order.gather(-1, place.clamp(max=p.shape[-1] - 1))[:, 0]
        for row, value in zip(rows, token.tolist(), strict=True):
            row.append(value)
        if all(end in row for row in rows):
            break
        state = state.extend(token)
    return rows


def _log_p(state: Continuation, how: Captioning) -> Tensor:
    return (state.logits.float() / how.temperature).log_softmax(-1)

"""Models that are products of vectors: a score is (user + query) . item + bias, so all items are one matrix product.

    s(u, q, i) = (e_u + sum of w in q of e_w) . e_i + b_i

and what the vectors are is the model's business. Two losses, both on the training events and one draw of negatives:

    bpr        -log sigma(s(i) - s(i')), i' an item the user has not had               (Rendle et al. 2009)
    softmax    -log exp s(i) / sum over j of exp s(j), j all items or a shared sample of them

plus l2 times the mean squared length of the layer-0 vectors that a batch touches.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.recommend.events import NO_WORD, Events, Sizes
from unidiffuser.recommend.models import Batch, Loss, Model


class Tables(NamedTuple):
    """The vectors that scores are products of."""

    users: Tensor
    """(U, d)."""
    items: Tensor
    """(I, d)."""
    words: Tensor
    """(V, d), row 0 zero; (1, d) where a model has no words."""


@dataclass(frozen=True, kw_only=True)
class FactorConfig:
    """What every product model can be told."""

    dim: int = 64
    """Numbers in a vector."""
    objective: Literal["bpr", "softmax"] = "bpr"
    """The loss; see the head of this file."""
    sample: int = 0
    """Items that a softmax compares with, drawn with equal chances and shared by a batch; 0: all items."""
    l2: float = 1e-4
    """Weight of the squared lengths."""
    scale: float = 0.1
    """Standard deviation of the fresh vectors."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.sample < 0 or not self.l2 >= 0 or not self.scale > 0:
            raise ValueError("dim and scale must be above 0, sample and l2 at least 0")
        if self.objective not in ("bpr", "softmax"):
            raise ValueError(f"the objective is bpr or softmax, not {self.objective!r}")


class FactorModel(Model):
    """The base of the product models."""

    config: FactorConfig
    reads_queries = False
    """Whether there are word vectors."""

    def __init__(self, config: FactorConfig, sizes: Sizes, train: Events) -> None:
        super().__init__(config, sizes, train)
        self.user = nn.Parameter(config.scale * torch.randn(sizes.users, config.dim))
        self.item = nn.Parameter(config.scale * torch.randn(sizes.items, config.dim))
        if self.reads_queries:
            self.word = nn.Parameter(config.scale * torch.randn(sizes.words, config.dim))
        self.ready_tables: Tables | None = None

    @abstractmethod
    def tables(self) -> Tables:
        """The vectors of all users, items and words, with gradients."""

    def layer_zero(self) -> Tables:
        """The parameters themselves."""
        word = self.word if self.reads_queries else self.user.new_zeros(1, self.config.dim)
        return Tables(self.user, self.item, word)

    def loss(self, batch: Batch, epoch: int) -> Loss:
        tables, events = self.tables(), batch.events
        asks = tables.users[events.user] + self.query(tables, events.words)
        if self.config.objective == "bpr":
            error, touched = self._bpr(tables, asks, batch)
        else:
            error, touched = self._softmax(tables, asks, batch)
        raw = self.layer_zero()
        lengths = raw.users[events.user].square().sum() + raw.items[touched].square().sum()
        if self.reads_queries:
            lengths = lengths + self.query(raw, events.words).square().sum()
        return error + self.config.l2 * lengths / len(events), {self.config.objective: error.detach()}

    def query(self, tables: Tables, words: Tensor) -> Tensor:
        """The sum of the word vectors of queries (B, W) -> (B, d); 0 for a query without words."""
        if not self.reads_queries or not words.shape[1]:
            return tables.users.new_zeros(len(words), self.config.dim)
        return (tables.words[words] * (words != NO_WORD)[..., None]).sum(1)

    def _bpr(self, tables: Tables, asks: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        better, worse = batch.events.item, batch.negative
        margin = (asks * (tables.items[better] - tables.items[worse])).sum(1)
        there = worse >= 0
        error = (F.softplus(-margin) * there).sum() / there.sum().clamp(min=1)
        return error, torch.cat([better, worse.clamp(min=0)])

    def _softmax(self, tables: Tables, asks: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        target = batch.events.item
        if not self.config.sample:
            return F.cross_entropy(asks @ tables.items.T, target), target
        drawn = torch.randint(self.sizes.items, (self.config.sample,), generator=batch.generator)
        others = asks @ tables.items[drawn].T  # (B, S)
        others = others.masked_fill(drawn == target[:, None], -torch.inf)
        own = (asks * tables.items[target]).sum(1, keepdim=True)
        return F.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(target)), target

    @torch.no_grad()
    def ready(self) -> None:
        users, items, words = self.tables()
        # The last row, which -1 means, is the average user.
        self.ready_tables = Tables(torch.cat([users, users.mean(0, keepdim=True)]), items, words)

    @torch.no_grad()
    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        if self.ready_tables is None:
            self.ready()
        assert self.ready_tables is not None
        asks = self.ready_tables.users[users] + self.query(self.ready_tables, words)
        return products(asks, self.ready_tables.items, items)


def products(asks: Tensor, table: Tensor, items: Tensor | None) -> Tensor:
    """asks (B, d) times all rows of a table (I, d), or times those named in items (B, C)."""
    if items is None:
        return asks @ table.T
    return torch.einsum("bd,bcd->bc", asks, table[items])

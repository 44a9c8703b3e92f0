"""UDITSR (Zhang et al. 2024, arXiv 2407.00912): inherent intent, demand intent, and the translation between them.

Every event has a demand q: the sum of its words, or what the generator (`demand`) makes for a recommendation. A user
and the demand together should be near the item, e_u + q ~ e_i, so the vectors travel along the edges with it:

    h_i <- mean over its events (h_u + q),   h_u <- mean over its events (h_i - q),   e* = h^0 + sum of h^l / (l + 1)

The demand of an edge is the same in all layers and the aggregate is a mean, so it is enough to know the mean demand of
each node, its offset: one sparse product a layer and no vector on any edge. The score is (e*_u + q) . e*_i, or the
published MLP on [e*_u | e*_i | q]. The loss is

    BPR  +  supervision * sum over searches of |q_ui - q|^2 / (d B)  +  contrast * -log sigma(delta(i') - delta(i)),
    delta(j) = |e*_u + q - e*_j|^2 / d

with one negative i' an event, whose demand is generated anew on recommendations. `reference` sets all that the
published code does: pads that learn, no item left out of its own lists, the MLP, its ending LeakyReLU.

With the dot head a search of all items is one product. A recommendation is not, since every candidate has a demand of
its own; where there are many items, the best are sought among those that one product with the usual demand (`usual`)
finds, and their scores are exact.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.recommend.events import NO_WORD, Events, Sizes
from unidiffuser.recommend.graph import most_frequent, without_own
from unidiffuser.recommend.models import Batch, Loss, Model
from unidiffuser.recommend.models.demand import ASKED, DemandGenerator, Shares
from unidiffuser.recommend.models.factors import products
from unidiffuser.recommend.models.translation import Pair, Translation
from unidiffuser.recommend.models.usual import UsualDemand

PAIRS = 100_000
"""So many pairs go through the generator at a time."""
MANY, SHORT = 5_000, 500
"""Above so many items a recommendation is sought in a shortlist of so many, unless the model is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class UDITSRConfig:
    """The settings of UDITSR; the published ones are `reference()`."""

    dim: int = 64
    """Numbers in a vector."""
    layers: int = 2
    """Steps along the graph."""
    head: Literal["dot", "mlp"] = "dot"
    """How vectors become a score."""
    user_words: int = 3
    """Words in Q_u."""
    item_words: int = 10
    """Words in Q_i."""
    query_words: int = 3
    """Words of a query that are read; 0: all."""
    masked: bool = True
    """Whether pads take no part anywhere."""
    leave_one_out: bool = True
    """Whether the supervised demand of a search is made from Q_u and Q_i without that search."""
    last_rectifier: bool = False
    """Whether the MLP ends in a LeakyReLU."""
    generator: bool = True
    """Whether recommendations have a demand; without, it is 0."""
    translation: bool = True
    """Whether demands travel along the graph."""
    supervision: float = 1.5
    """Weight of the generator's error on searches."""
    contrast: float = 0.2
    """Weight of the translation's contrast."""
    refresh: Literal["step", "epoch"] = "epoch"
    """When the generated part of the offsets is made: at every step with gradients, as published, or once an epoch
    without."""
    shortlist: int = -1
    """Items that the best of a recommendation are sought among; 0: all of them; -1: `SHORT` with the dot head and more
    than `MANY` items, else all. It matters only when the model is asked, and needs the dot head."""

    def __post_init__(self) -> None:
        if min(self.dim, self.user_words, self.item_words) < 1 or min(self.layers, self.query_words) < 0:
            raise ValueError("dim, user_words and item_words are at least 1, layers and query_words at least 0")
        if self.head not in ("dot", "mlp") or self.refresh not in ("step", "epoch"):
            raise ValueError(f"head is dot or mlp and refresh step or epoch, not {self.head!r} and {self.refresh!r}")
        if not (self.supervision >= 0 and self.contrast >= 0):
            raise ValueError("supervision and contrast are weights and at least 0")
        if self.shortlist < -1 or (self.shortlist > 0 and self.head != "dot"):
            raise ValueError("shortlist is -1 (by the number of items), 0 (off) or more, and only the dot head has one")

    @classmethod
    def reference(cls) -> "UDITSRConfig":
        """What the published code does."""
        return cls(dim=100, head="mlp", masked=False, leave_one_out=False, last_rectifier=True, refresh="step")


class State(NamedTuple):
    """All vectors at one moment."""

    users: Tensor
    """(U, d) e*_u."""
    items: Tensor
    """(I, d) e*_i."""
    words: Tensor
    """(V, d)."""
    shares: Shares | None
    """None without a generator."""


class UDITSR(Model):
    """Dual-intent translation for search and recommendation."""

    kind = "uditsr"
    Config = UDITSRConfig
    asked = ("shortlist",)
    config: UDITSRConfig
    offset_u: Tensor
    offset_i: Tensor
    epoch: Tensor

    def __init__(self, config: UDITSRConfig, sizes: Sizes, train: Events) -> None:
        train = replace(train, words=self._cut(config, train.words))
        super().__init__(config, sizes, train)
        rows = (sizes.users, sizes.items, sizes.words)
        self.user, self.item, self.word = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, config.dim))) for n in rows
        )
        search = train.is_search
        self.quiet = train[~search]
        self.translation = Translation(
            train, (train.words > 0) if config.masked else search[:, None] & (train.words >= 0), sizes
        )
        owners = (train.user, sizes.users, config.user_words), (train.item, sizes.items, config.item_words)
        if config.generator:
            lists = (most_frequent(owner, train.words, count, n)[0] for owner, count, n in owners)
            self.generate = DemandGenerator(config.dim, *lists, masked=config.masked)
        if config.leave_one_out:
            self.left_out = [without_own(owner, train.words, count, n) for owner, count, n in owners]
        if config.head == "mlp":
            self.heads = nn.ModuleList(_head(config.dim, config.last_rectifier) for _ in range(2))
        for name, count in (("offset_u", sizes.users), ("offset_i", sizes.items)):
            self.register_buffer(name, torch.zeros(count, config.dim))
        self.register_buffer("epoch", torch.tensor(-1))

    @staticmethod
    def _cut(config: UDITSRConfig, words: Tensor) -> Tensor:
        """Queries as this model reads them: cut, and padded to one width where pads count."""
        width = config.query_words
        words = words[:, :width] if width else words
        return words if config.masked or not width else F.pad(words, (0, width - words.shape[1]))

    def word_table(self) -> Tensor:
        """(V, d); row 0 is zero unless pads learn."""
        return torch.cat([torch.zeros_like(self.word[:1]), self.word[1:]]) if self.config.masked else self.word

    def state(self, offsets: Pair | None = None) -> State:
        """All vectors, with gradients.

        Args:
            offsets: the recommendations' part of the mean demands; None: it is made now.
        """
        words = self.word_table()
        shares = self.generate.shares(self.user, self.item, words) if self.config.generator else None
        shift = None
        if self.config.translation:
            shift = self.translation.searched(words)
            if offsets is None and shares is not None:
                offsets = self.offsets(shares)
            if offsets is not None:
                shift = shift[0] + offsets[0], shift[1] + offsets[1]
        return State(*self.translation.carry(self.user, self.item, shift, self.config.layers), words, shares)

    def offsets(self, shares: Shares) -> Pair:
        """The recommendations' part of the mean demand of each node."""
        sums = torch.zeros_like(self.user), torch.zeros_like(self.item)
        for start in range(0, len(self.quiet), PAIRS):
            part = self.quiet[start : start + PAIRS]
            more = self.translation.generated(part, self.generate(shares, part.user, part.item))
            sums = sums[0] + more[0], sums[1] + more[1]
        return sums

    @torch.no_grad()
    def refresh(self, epoch: int) -> None:
        """Make the offsets of an epoch; they are saved with a run, so that it can go on in the middle of one."""
        if self.config.generator and self.config.translation:
            made = self.offsets(self.generate.shares(self.user, self.item, self.word_table()))
            self.offset_u.copy_(made[0])
            self.offset_i.copy_(made[1])
        self.epoch.fill_(epoch)

    def loss(self, batch: Batch, epoch: int) -> Loss:
        saved = self.config.refresh == "epoch"
        if saved and int(self.epoch) != epoch:
            self.refresh(epoch)
        state = self.state((self.offset_u, self.offset_i) if saved else None)
        events, there, worse = batch.events, batch.negative >= 0, batch.negative.clamp(min=0)
        search, query = events.is_search, self.query(state, events.words)
        demand = self.demand(state, events.user, events.item, query, search)
        other = self.demand(state, events.user, worse, query, search)
        margin = self.score(state, events.user, events.item, demand, search)
        margin = margin - self.score(state, events.user, worse, other, search)
        count = there.sum().clamp(min=1)
        parts = {"bpr": (F.softplus(-margin) * there).sum() / count}
        if self.config.supervision and state.shares is not None:
            parts["supervision"] = self.generator_error(state, batch, query)
        if self.config.contrast:
            aim = state.users[events.user] + demand
            near, far = ((aim - state.items[item]).square().mean(1) for item in (events.item, worse))
            parts["contrast"] = (F.softplus(near - far) * there).sum() / count
        weights = {"bpr": 1.0, "supervision": self.config.supervision, "contrast": self.config.contrast}
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def generator_error(self, state: State, batch: Batch, query: Tensor) -> Tensor:
        """The sum over the searches of |q_ui - q|^2 / d, over the size of the batch."""
        search = batch.events.is_search
        events, shares, rows = batch.events[search], state.shares, batch.rows[search]
        assert shares is not None
        if not self.config.leave_one_out:
            made = self.generate(shares, events.user, events.item)
        else:
            user_words, item_words = (lists[rows] for lists in self.left_out)
            ask, user = self.generate.user_shares(self.user[events.user], state.words, user_words)
            alone = shares._replace(ask=ask, user=user)
            made = self.generate(alone, torch.arange(len(events)), events.item, item_words)
        return (made - query[search]).square().mean(1).sum() / len(search)

    def query(self, state: State, words: Tensor) -> Tensor:
        """The demand of queries (B, W) -> (B, d)."""
        words = self._cut(self.config, words)
        return state.words[words].sum(1) if words.shape[1] else state.users.new_zeros(len(words), self.config.dim)

    def demand(self, state: State, users: Tensor, items: Tensor, query: Tensor, search: Tensor) -> Tensor:
        """The demand of each pair, (P, d): the query's on searches, the generator's on recommendations."""
        asked = query * search[:, None]
        quiet = (~search).nonzero()[:, 0]
        if state.shares is None or not len(quiet):
            return asked
        return asked.index_add(0, quiet, self.generate(state.shares, users[quiet], items[quiet]))

    def score(self, state: State, users: Tensor, items: Tensor, demand: Tensor, search: Tensor) -> Tensor:
        """(P,) the scores of pairs with their demands."""
        e_u, e_i = state.users[users], state.items[items]
        if self.config.head == "dot":
            return ((e_u + demand) * e_i).sum(1)
        joined = torch.cat([e_u, e_i, demand], 1)
        in_search, in_recommendation = (head(joined)[:, 0] for head in self.heads)
        return torch.where(search, in_search, in_recommendation)

    @torch.no_grad()
    def ready(self) -> None:
        state, average = self.state(), lambda x: torch.cat([x, x.mean(0, keepdim=True)])
        # The last row of all that belongs to users, which -1 means, is the average user.
        shares = state.shares and state.shares._replace(ask=average(state.shares.ask), user=average(state.shares.user))
        self.now = state._replace(users=average(state.users), shares=shares)
        if shares is not None:
            counts = torch.bincount(self.train_events.item, minlength=self.sizes.items)
            self.usual = UsualDemand(self.generate, shares, state.items, counts)

    def shortlist(self, words: Tensor) -> int:
        count = self.config.shortlist
        if count < 0:
            count = SHORT if self.config.head == "dot" and self.sizes.items > MANY else 0
        quiet = ~(words != NO_WORD).any(1)
        return min(count, self.sizes.items) if self.now.shares is not None and bool(quiet.any()) else 0

    @torch.no_grad()
    def coarse(self, users: Tensor, words: Tensor) -> Tensor:
        search = (words != NO_WORD).any(1, keepdim=True)
        demand = torch.where(search, self.query(self.now, words), self.usual.of_users(users))
        return (self.now.users[users] + demand) @ self.now.items.T + self.usual.item_effect * ~search

    @torch.no_grad()
    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        """A candidate has a demand of its own, so each costs a recommendation one pass of the generator; all else is a
        product with the dot head."""
        search = (words != NO_WORD).any(1)
        table = self.now.users.new_empty(len(users), self.sizes.items if items is None else items.shape[1])
        rows = torch.arange(len(users))
        if self.config.head == "dot":
            alone = search if self.now.shares is not None else torch.ones_like(search)  # not the candidate's business
            asks = self.now.users[users[alone]] + self.query(self.now, words[alone]) * search[alone, None]
            table[alone] = products(asks, self.now.items, None if items is None else items[alone])
            rows = (~alone).nonzero()[:, 0]
        candidates = torch.arange(self.sizes.items).expand(len(users), -1) if items is None else items
        for part in rows.split(max(1, ASKED // table.shape[1])):
            for columns in torch.arange(table.shape[1]).split(ASKED):
                some = part[:, None], columns
                table[some] = self._pair_scores(users[part], words[part], candidates[some])
        return table

    def _pair_scores(self, users: Tensor, words: Tensor, items: Tensor) -> Tensor:
        """(B, C), pair by pair."""
        width = items.shape[1]
        shares = self.now.shares and self.now.shares.of(users)
        here = self.now._replace(users=self.now.users[users], shares=shares)
        who = torch.arange(len(users)).repeat_interleave(width)
        query, search = self.query(here, words)[who], (words != NO_WORD).any(1)[who]
        demand = self.demand(here, who, items.flatten(), query, search)
        return self.score(here, who, items.flatten(), demand, search).reshape(-1, width)

    @property
    def names_demand(self) -> bool:
        return self.config.generator

    @torch.no_grad()
    def word_scores(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        if items is None or not self.config.generator:
            return super().word_scores(users, items)
        assert self.now.shares is not None
        table = self.generate(self.now.shares, users, items) @ self.now.words.T
        table[:, NO_WORD] = -torch.inf
        return table


def _head(dim: int, last_rectifier: bool) -> nn.Sequential:
    """3d -> 1.5d -> 0.75d -> 1 with LeakyReLU between."""
    wide, narrow = max(1, 3 * dim // 2), max(1, 3 * dim // 4)
    layers = [nn.Linear(3 * dim, wide), nn.LeakyReLU(), nn.Linear(wide, narrow), nn.LeakyReLU(), nn.Linear(narrow, 1)]
    return nn.Sequential(*layers, *([nn.LeakyReLU()] if last_rectifier else []))

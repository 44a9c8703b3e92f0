"""UDITSR as published, written out plainly: every demand made pair by pair, every message carried along its edge.

The equations are those of arXiv 2407.00912 as its code has them. At each step the demand of every training event is
made anew, of searches too, and what travels along the graph is a vector an event. It serves `recommend.py` as what it
is measured against, and the tests as an independent form of the model; its weights are those of a `UDITSR`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.recommend.events import Events
from unidiffuser.recommend.graph import most_frequent
from unidiffuser.recommend.models import Batch
from unidiffuser.recommend.models.uditsr import UDITSR


class Edgewise(nn.Module):
    """The model with one vector an edge."""

    def __init__(self, model: UDITSR) -> None:
        """model: whose weights, events and settings these are; the weights are shared, not copied."""
        super().__init__()
        self.config, self.events, sizes = model.config, model.train_events, model.sizes
        self.user, self.item, self.word = model.user, model.item, model.word
        self.generate = model.generate
        # b_A, which the factorised form leaves out because it cancels
        self.key_bias = torch.randn(model.config.dim, generator=torch.Generator().manual_seed(0)).to(self.word)
        self.heads = model.heads if model.config.head == "mlp" else None
        self.user_words, _ = most_frequent(self.events.user, self.events.words, sizes.users, model.config.user_words)
        self.item_words, _ = most_frequent(self.events.item, self.events.words, sizes.items, model.config.item_words)

    def vectors(self, words: Tensor) -> Tensor:
        """The vectors of words (..., W) -> (..., W, d); pads are zero if they are masked."""
        found = self.word[words]
        return found * (words > 0)[..., None] if self.config.masked else found

    def demands(
        self, users: Tensor, items: Tensor, user_words: Tensor | None = None, item_words: Tensor | None = None
    ) -> Tensor:
        """The generator for P pairs, (P, d)."""
        e_u, e_i = self.user[users], self.item[items]
        theirs = self.user_words[users] if user_words is None else user_words
        its = self.item_words[items] if item_words is None else item_words
        of_u, of_i = self.vectors(theirs), self.vectors(its)  # (P, 3, d), (P, 10, d)
        ask = self.generate.ask(torch.cat([e_u, of_u.flatten(1)], 1))  # (P, d)
        scores = (ask[:, None] * (self.generate.key(of_i) + self.key_bias)).sum(2)  # (P, 10)
        if self.config.masked:
            scores = scores.masked_fill(its == 0, -1e300 if scores.dtype == torch.float64 else -1e30)
        q_i = (scores.softmax(1)[..., None] * of_i).sum(1)
        joined = torch.cat([e_u, e_i, of_u.sum(1), q_i], 1)  # (P, 4d)
        return self.generate.rest(self.generate.first(joined))

    def mixed(self, events: Events, items: Tensor) -> Tensor:
        """The demand of events if they were about these items: the query's on searches, else the generator's."""
        asked = self.vectors(events.words).sum(1)
        return torch.where(events.is_search[:, None], asked, self.demands(events.user, items))

    def propagate(self) -> tuple[Tensor, Tensor]:
        """e* of all users and items."""
        users, items = self.events.user, self.events.item
        q = self.mixed(self.events, items)  # (N, d)
        h_u, h_i = self.user, self.item
        sum_u, sum_i = h_u, h_i
        for layer in range(1, self.config.layers + 1):
            to_item, to_user = h_u[users] + q, h_i[items] - q
            h_i = _mean(to_item, items, len(self.item))
            h_u = _mean(to_user, users, len(self.user))
            sum_u, sum_i = sum_u + h_u / (layer + 1), sum_i + h_i / (layer + 1)
        return sum_u, sum_i

    def score(self, e_u: Tensor, e_i: Tensor, demand: Tensor, search: Tensor) -> Tensor:
        """(P,)."""
        if self.heads is None:
            return ((e_u + demand) * e_i).sum(1)
        joined = torch.cat([e_u, e_i, demand], 1)
        return torch.where(search, self.heads[0](joined)[:, 0], self.heads[1](joined)[:, 0])

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, all of it made anew."""
        events, worse = batch.events, batch.negative
        all_users, all_items = self.propagate()
        e_u, e_i, e_n = all_users[events.user], all_items[events.item], all_items[worse]
        near, far = self.mixed(events, events.item), self.mixed(events, worse)
        search = events.is_search
        better = self.score(e_u, e_i, near, search) - self.score(e_u, e_n, far, search)
        made = self.demands(events.user, events.item)
        wrong = (made - self.vectors(events.words).sum(1)).square().mean(1)
        apart = (e_u + near - e_n).square().mean(1) - (e_u + near - e_i).square().mean(1)
        return (
            F.softplus(-better).mean()
            + self.config.supervision * (wrong * search).sum() / len(search)
            + self.config.contrast * F.softplus(-apart).mean()
        )


def _mean(messages: Tensor, nodes: Tensor, count: int) -> Tensor:
    """The mean message of every node, 0 where there is none."""
    total = torch.zeros(count, messages.shape[1], dtype=messages.dtype).index_add(0, nodes, messages)
    return total / torch.bincount(nodes, minlength=count).clamp(min=1)[:, None]

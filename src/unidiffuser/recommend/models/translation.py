"""Translation along the graph of users and items: what UDITSR's vectors do between layer 0 and the score.

With the demand q_e of every edge e, the published propagation is

    h_i <- mean over the edges of i of (h_u + q_e),       h_u <- mean over the edges of u of (h_i - q_e),
    e* = h^0 + sum over l = 1 ... L of h^l / (l + 1).

The demands are the same in all layers and the aggregate is a mean, so only their mean at each node matters:

    H_I <- D_I^-1 A^T H_U + Q_I,      H_U <- D_U^-1 A H_I - Q_U

which needs one sparse product a layer and no vector on any edge. The searches' part of Q is itself a sparse product
with the word vectors. It does not know where the demands of recommendations come from.
"""

import torch
from torch import Tensor

from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.graph import Link

Pair = tuple[Tensor, Tensor]
"""Something for users (U, d) and for items (I, d)."""


class Translation:
    """The graph of the training events, each of them an edge."""

    def __init__(self, events: Events, counted: Tensor, sizes: Sizes, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            events: the edges; an edge that is there twice counts twice.
            counted: (N, W) bool, which words of the queries are part of a demand.
        """
        ones = torch.ones(len(events), dtype=dtype)
        self.link = Link(events.user, events.item, ones, (sizes.users, sizes.items))
        # A node without edges has no mean; all its sums are 0.
        self.edges = tuple(
            torch.bincount(nodes, minlength=count).clamp(min=1).to(dtype)[:, None]
            for nodes, count in ((events.user, sizes.users), (events.item, sizes.items))
        )
        row, place = counted.nonzero(as_tuple=True)
        words, once = events.words[row, place], torch.ones(len(row), dtype=dtype)
        self.asked = (
            Link(events.user[row], words, once, (sizes.users, sizes.words)),
            Link(events.item[row], words, once, (sizes.items, sizes.words)),
        )

    def searched(self, words: Tensor) -> Pair:
        """The searches' part of the mean demand of each node; words (V, d)."""
        return (self.asked[0] @ words) / self.edges[0], (self.asked[1] @ words) / self.edges[1]

    def generated(self, events: Events, demand: Tensor) -> Pair:
        """The part that some other edges add, with their demands (E, d)."""
        nodes = (events.user, events.item)
        sums = (torch.zeros(len(n), demand.shape[1], dtype=demand.dtype) for n in self.edges)
        return tuple(s.index_add(0, x, demand) / n for s, x, n in zip(sums, nodes, self.edges, strict=True))  # type: ignore[return-value]

    def carry(self, users: Tensor, items: Tensor, shift: Pair | None, layers: int) -> Pair:
        """e* of all users and items.

        Args:
            users: (U, d) and items: (I, d), layer 0.
            shift: Q_U and Q_I; None: nothing is translated, the vectors are only averaged.
        """
        sum_u, sum_i = h_u, h_i = users, items
        for layer in range(1, layers + 1):
            h_u, h_i = (self.link @ h_i) / self.edges[0], (self.link.t @ h_u) / self.edges[1]
            if shift is not None:
                h_u, h_i = h_u - shift[0], h_i + shift[1]
            sum_u, sum_i = sum_u + h_u / (layer + 1), sum_i + h_i / (layer + 1)
        return sum_u, sum_i

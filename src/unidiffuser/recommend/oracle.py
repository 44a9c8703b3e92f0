"""What is true in a world: the probabilities that no model can beat.

With pi = habit, s_u(i) = softmax over the items of i's topic, e = stray, and the words of a query independent given z,

    p(z, i | u) = pi_u(z) [ (1 - e) 1[z = topic(i)] s_u(i) + e / I ]
    p(q | z)    ~ prod over words w of  l_w(z) = (1 - wrong) 1[topic(w) = z] / words + wrong / V
    p(i | u, q) ~ sum over z of  p(z, i | u) p(q | z)
                = (1 - e) pi_u(c) s_u(i) l_q(c)  +  (e / I) sum_z pi_u(z) l_q(z),       c = topic(i)

(how many words a query has says nothing about z). Ranking by it is the best that can be done with one list, on average
over the world; p(q | u) and p(z | u, i) follow from the same table.

The oracle answers in the rows of a model's `Names`, so it can be measured beside it.
"""

import numpy as np
import torch
from torch import Tensor

from unidiffuser.recommend.events import NO_WORD, Names
from unidiffuser.recommend.world import World


class Oracle:
    """The truth of a world, asked like a model."""

    def __init__(self, world: World, names: Names) -> None:
        """names: whose rows users, items and words are; their raw ids must be numbers of the world.

        Raises:
            ValueError: an id that is not of this world.
        """
        self.world = world
        c = world.config
        self.user = _numbers(names.users.labels, c.users, "user")
        self.item = _numbers(names.items.labels, c.items, "item")
        word = _numbers(names.words.labels[1:], c.topics * c.words, "word")
        own = torch.from_numpy(word // c.words)[:, None] == torch.arange(c.topics)
        likelihood = own * ((1 - c.wrong) / c.words) + c.wrong / (c.topics * c.words)
        # Row 0 is "no word", which says nothing.
        self.likelihood = torch.cat([torch.ones(1, c.topics, dtype=torch.float64), likelihood.double()])
        self.topic = torch.from_numpy(world.topic[self.item])  # (I,)

    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        """log p(i | u, q), (B, I) or (B, C), float64; without a word it is log p(i | u).

        Args:
            users: (B,) rows.
            words: (B, W) queries, padded with 0.
            items: (B, C) rows of the items that are asked for; None: all.
        """
        p = self.probabilities(users, words).log()
        return p if items is None else p.gather(1, items)

    def probabilities(self, users: Tensor, words: Tensor) -> Tensor:
        """p(i | u, q) of all items, (B, I), float64; each row sums to 1."""
        c = self.world.config
        rows = self.user[users.numpy()]
        weight = torch.from_numpy(self.world.habit[rows]) * self.likelihood[words].prod(1)  # (B, K)
        within = torch.from_numpy(self.world.within_topic(rows)[:, self.item])  # (B, I)
        joint = (1 - c.stray) * weight[:, self.topic] * within + c.stray / c.items * weight.sum(1, keepdim=True)
        return joint / weight.sum(1, keepdim=True)

    def demand(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        """p(z | u) or, of one item each (B,), p(z | u, i): (B, K), float64."""
        c, rows = self.world.config, self.user[users.numpy()]
        habit = torch.from_numpy(self.world.habit[rows])
        if items is None:
            return habit
        within = torch.from_numpy(self.world.within_topic(rows)[:, self.item]).gather(1, items[:, None])
        own = self.topic[items][:, None] == torch.arange(c.topics)
        joint = habit * ((1 - c.stray) * own * within + c.stray / c.items)
        return joint / joint.sum(1, keepdim=True)

    def word_scores(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        """log of the probability of each word in a query of u (or of u for i), (B, V); "no word" is impossible."""
        p = self.demand(users, items) @ self.likelihood.T
        p[:, NO_WORD] = 0.0
        return p.log()


def _numbers(labels: tuple[str, ...], count: int, what: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The world's numbers behind raw ids."""
    try:
        numbers = np.array([int(label) for label in labels], dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"a {what} of this data is not of the world beside it: {error}") from error
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
        raise ValueError(f"the world beside this data has {count} {what}s, and the data names another")
    return numbers

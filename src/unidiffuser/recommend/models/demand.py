"""UDITSR's demand generator, factorised: the demand behind a recommendation, made from what was searched for.

    q_u   = sum of e_w over the user's words Q_u           k_u = W_K [e_u | e_w1 | e_w2 | e_w3] + b_K
    alpha = softmax over w in Q_i of  k_u . (W_A e_w + b_A)           q_i = sum of alpha_w e_w
    q_ui  = MLP [e_u | e_i | q_u | q_i],     4d -> 2d -> 2d -> d, tanh between, linear out

(Zhang et al. 2024, arXiv 2407.00912, as their code has it). The published form computes all of it for every pair. But a
linear layer of joined vectors is a sum of one linear layer a vector: W_K and the first layer of the MLP are taken once
a user, an item and a word, and b_A cancels in the softmax, so there is none. What is left for a pair is the softmax
over Q_i, a weighted sum of rows, and two layers. The result is the same to the last bits of float64
(tests/test_recommend_uditsr.py).

It knows nothing of the graph.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ASKED = 16_000
"""So many pairs at a time when a model is asked, where nothing is kept for gradients and all of it may stay in the
cache."""


class Shares(NamedTuple):
    """What the generator needs of each user, item and word, computed once for all pairs."""

    ask: Tensor
    """(U, d) k_u."""
    user: Tensor
    """(U, 2d) the first layer's share of e_u and q_u, with its bias."""
    item: Tensor
    """(I, 2d) the share of e_i."""
    key: Tensor
    """(V, d) W_A e_w."""
    word: Tensor
    """(V, 2d) the share of each word of q_i."""

    def of(self, users: Tensor) -> "Shares":
        """The shares with these users alone, whose attention to all words is then one small product."""
        return self._replace(ask=self.ask[users], user=self.user[users])


class DemandGenerator(nn.Module):
    """(user, item) -> the demand, a vector among the word vectors."""

    user_words: Tensor
    item_words: Tensor

    def __init__(self, dim: int, user_words: Tensor, item_words: Tensor, *, masked: bool) -> None:
        """
        Args:
            dim: d.
            user_words: (U, J) Q_u, padded with 0.
            item_words: (I, K) Q_i, padded with 0.
            masked: whether pads take no part; the published code lets word 0 stand for them and learns it.
        """
        super().__init__()
        self.dim, self.masked = dim, masked
        self.register_buffer("user_words", user_words, persistent=False)
        self.register_buffer("item_words", item_words, persistent=False)
        self.ask = nn.Linear((1 + user_words.shape[1]) * dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.first = nn.Linear(4 * dim, 2 * dim)
        self.rest = nn.Sequential(nn.Tanh(), nn.Linear(2 * dim, 2 * dim), nn.Tanh(), nn.Linear(2 * dim, dim))

    def shares(self, users: Tensor, items: Tensor, words: Tensor) -> Shares:
        """The parts of the generator that belong to one user, item or word.

        Args:
            users: (U, d), items: (I, d), words: (V, d), layer 0; word 0 must be zero if the generator is masked.
        """
        _, of_i, _, of_qi = self.first.weight.split(self.dim, 1)
        ask, user = self.user_shares(users, words, self.user_words)
        return Shares(ask, user, items @ of_i.T, words @ self.key.weight.T, words @ of_qi.T)

    def user_shares(self, users: Tensor, words: Tensor, lists: Tensor) -> tuple[Tensor, Tensor]:
        """`Shares.ask` and `Shares.user` of users (U, d) with the lists Q_u (U, J)."""
        of_u, *of_slots = self.ask.weight.split(self.dim, 1)
        ask = users @ of_u.T + self.ask.bias
        for slot, weight in enumerate(of_slots):
            ask = ask + F.embedding(lists[:, slot], words @ weight.T)
        of_u, _, of_qu, _ = self.first.weight.split(self.dim, 1)
        return ask, users @ of_u.T + words[lists].sum(1) @ of_qu.T + self.first.bias

    def forward(self, shares: Shares, users: Tensor, items: Tensor, item_words: Tensor | None = None) -> Tensor:
        """The demands of P pairs, (P, d).

        Args:
            users: (P,) rows of `shares`; items: (P,).
            item_words: other lists Q_i than the items' own, (P, K).
        """
        lists = self.item_words[items] if item_words is None else item_words  # (P, K)
        alpha = self.attention(shares, users, lists)
        blend = F.embedding_bag(lists, shares.word, per_sample_weights=alpha, mode="sum")
        demand: Tensor = self.rest(shares.user[users] + shares.item[items] + blend)
        return demand

    def attention(self, shares: Shares, users: Tensor, lists: Tensor) -> Tensor:
        """alpha, (P, K): the weight of each word of Q_i; all 0 for a masked item without words."""
        if shares.ask.shape[0] * shares.key.shape[0] <= lists.numel():
            table = shares.ask @ shares.key.T  # (U, V) is less work than one product for every pair
            scores = table[users[:, None], lists]
        else:
            scores = torch.einsum("pd,pkd->pk", shares.ask[users], shares.key[lists])
        if not self.masked:
            return scores.softmax(1)
        there = lists > 0
        scores = scores.masked_fill(~there, -torch.inf).masked_fill(~there.any(1, keepdim=True), 0.0)
        return scores.softmax(1) * there

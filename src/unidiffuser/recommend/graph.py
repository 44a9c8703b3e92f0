"""Sparse products over the graph of users, items and words, and the averages that graph models are made of.

A `Link` is a sparse matrix that can be multiplied from either side, with gradients, at the speed of torch's compressed
rows in both directions. Light graph convolution (He et al. 2020, LightGCN, eq. 7 and 8) is a link multiplied a few
times:

    h^(l+1) = D^-1/2 A D^-1/2 h^(l),      e* = sum over l = 0 ... L of h^(l) / (L + 1)

It knows no model.
"""

import warnings
from typing import Any

import torch
from torch import Tensor


class Link:
    """A sparse matrix (R, C), held by rows and by columns."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        """rows, columns: (E,) int64; values: (E,). What stands at one place several times is added up."""
        places = torch.stack([rows, columns])
        matrix = torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
        self.shape = shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.by_row = matrix.to_sparse_csr()
            self.by_column = matrix.t().coalesce().to_sparse_csr()

    def __matmul__(self, x: Tensor) -> Tensor:
        """(R, C) @ (C, d) -> (R, d)."""
        product: Tensor = _Product.apply(self.by_row, self.by_column, x)
        return product

    @property
    def t(self) -> "Link":
        """The transpose, (C, R), of the same memory."""
        turned = object.__new__(Link)
        turned.shape = (self.shape[1], self.shape[0])
        turned.by_row, turned.by_column = self.by_column, self.by_row
        return turned


class _Product(torch.autograd.Function):
    """A sparse matrix times a dense one; torch's own gradient would sort the matrix anew at each step."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transpose: Tensor, x: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transpose @ grad.contiguous()


def symmetric_link(rows: Tensor, columns: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Link:
    """D^-1/2 A D^-1/2 of a graph with two sides, each pair counting once however often it is there."""
    pairs = torch.unique(rows * shape[1] + columns)
    rows, columns = pairs // shape[1], pairs % shape[1]
    left, right = (torch.bincount(x, minlength=n).to(dtype) for x, n in zip((rows, columns), shape, strict=True))
    return Link(rows, columns, (left[rows] * right[columns]).rsqrt(), shape)


def light_convolution(link: Link, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """LightGCN's propagation over a symmetric link (U, I).

    Args:
        users: (U, d) and items: (I, d), layer 0.

    Returns:
        The means over the layers, (U, d) and (I, d).
    """
    sum_u, sum_i = users, items
    for _ in range(layers):
        users, items = link @ items, link.t @ users
        sum_u, sum_i = sum_u + users, sum_i + items
    return sum_u / (layers + 1), sum_i / (layers + 1)


def most_frequent(owner: Tensor, words: Tensor, owners: int, count: int) -> tuple[Tensor, Tensor]:
    """The words that each owner has most often, the more frequent and then the earlier seen first.

    Args:
        owner: (N,) the row of each event's owner.
        words: (N, W) queries, padded with 0, which is no word.
        count: how many words are kept.

    Returns:
        (owners, count) words and how often each is there; shorter lists are padded with 0.
    """
    kept = words.flatten() != 0
    owner, words = owner.repeat_interleave(words.shape[1])[kept], words.flatten()[kept]
    table = torch.zeros(2, owners, count, dtype=torch.int64)
    if not len(words):
        return table[0], table[1]
    width = int(words.max()) + 1
    pairs, place, often = torch.unique(owner * width + words, return_inverse=True, return_counts=True)
    first = torch.full((len(pairs),), len(words)).scatter_reduce(0, place, torch.arange(len(words)), "amin")
    order = torch.argsort(first)
    order = order[torch.argsort(often[order], descending=True, stable=True)]
    order = order[torch.argsort(pairs[order] // width, stable=True)]
    who, what = pairs[order] // width, pairs[order] % width
    sizes = torch.bincount(who, minlength=owners)
    rank = torch.arange(len(who)) - (sizes.cumsum(0) - sizes)[who]
    near = rank < count
    table[:, who[near], rank[near]] = torch.stack([what, often[order]])[:, near]
    return table[0], table[1]


def without_own(owner: Tensor, words: Tensor, owners: int, count: int) -> Tensor:
    """For every event its owner's most frequent words when that event itself is left out, (N, count); see
    `most_frequent`."""
    # An event can push no more words from the list than it has itself.
    listed, often = most_frequent(owner, words, owners, count + words.shape[1])
    listed, often = listed[owner], often[owner]
    own = ((listed[:, :, None] == words[:, None, :]) & (words > 0)[:, None, :]).sum(2)
    left, order = (often - own).sort(dim=1, descending=True, stable=True)
    return torch.where(left > 0, listed.gather(1, order), 0)[:, :count]

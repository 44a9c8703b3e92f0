"""The joint diffusion over user, query and item latents, sampled and scored by the engine's own roles.

    search           p(item | user, query)     item is sampled, user and query are given
    recommendation   p(item | user)            item and query are sampled, user is given
    suggestion       p(query | user)           query is sampled, user is given, item is ignored
    audience         p(user | item)            user is sampled, item is given, query is ignored

A ranking of all items needs their probabilities. Those come from samples by the law of total expectation, at any
timestep s where the sampling is stopped:

    p(i | given) = E over x_s ~ p(x_s | given) of  p(i | x_s, given)

With `samples` = 0 the expectation is taken at s = 1, where nothing has been sampled and one call of the network says
it. With samples, a recommendation first draws the demand: its query runs down from noise together with the item, as
UDITSR's generator would have it but without having seen the candidate. Guidance pushes away from what the model says
when nothing is given (`guidance`); at s = 1 it acts on the logarithms of the probabilities.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unidiffuser.guidance import MAX_SCALE, Guidance
from unidiffuser.joint import Joint, expand
from unidiffuser.recommend.events import NO_WORD
from unidiffuser.recommend.models.joint import STREAMS, JointConfig, JointModel
from unidiffuser.sampling import sample
from unidiffuser.timesteps import assign_roles

CELLS = 20_000_000
"""So many probabilities are held at a time."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(JointConfig):
    """The settings of the diffusion; the last four matter only when it is asked."""

    samples: int = 0
    """Draws that a score is the mean of; 0: one call of the network."""
    steps: int = 8
    """Steps of a draw."""
    end: float = 0.3
    """The timestep at which a draw stops; below 1."""
    guidance: float = 0.0
    """s of the engine's guidance; 0: off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 0 or not 1 <= self.steps <= 1000 or not 0 < self.end < 1:
            raise ValueError("samples is 0 or more, steps 1 to 1000, and end lies between 0 and 1")
        if not 0 <= self.guidance <= MAX_SCALE:
            raise ValueError(f"guidance must lie between 0 (off) and {MAX_SCALE:g}, not {self.guidance}")


class LatentDenoiser:
    """A trained model as the engine's Denoiser."""

    def __init__(self, model: JointModel, wanted: Collection[str]) -> None:
        """wanted: the streams that are estimated; the others come back as they are."""
        self.model, self.wanted = model, wanted

    def __call__(self, xt: Joint, t: Mapping[str, Tensor]) -> Joint:
        """E[x0 | x_t] of every wanted stream: the mean of its vectors by their probabilities, x_t itself at t = 0."""
        out = self.model.network(xt, t)
        means = {s: self.model.mean_of(s, out[s]) for s in self.wanted}
        return {s: torch.where(expand(t[s] == 0, x), x, means.get(s, x)) for s, x in xt.items()}


class Diffusion(JointModel):
    """Every modality with a timestep of its own."""

    kind = "diffusion"
    Config = DiffusionConfig
    config: DiffusionConfig
    asked = ("samples", "steps", "end", "guidance")

    @torch.no_grad()
    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        if not self.config.samples:
            table = self.guided(super().scores(users, words))
        else:
            rows = max(1, CELLS // (self.sizes.items * self.config.samples))
            parts = zip(users.split(rows), words.split(rows), strict=True)
            table = torch.cat([self.sampled_scores(*part) for part in parts])
        return table if items is None else table.gather(1, items)

    def guided(self, table: Tensor) -> Tensor:
        """log p + s (log p - log p with nothing given), in each row up to a constant."""
        if not self.config.guidance:
            return table
        nothing = torch.tensor([-1]), torch.zeros(1, 1, dtype=torch.int64)
        return table + self.config.guidance * (table - super().scores(*nothing))

    def sampled_scores(self, users: Tensor, words: Tensor) -> Tensor:
        """log of the mean over the draws of p(item | x_s, given), (B, I)."""
        table = torch.empty(len(users), self.sizes.items)
        # What a user had or a query says may be nothing; then it is not given but ignored, or sampled.
        there = {"user": (self.now["users"][users] != 0).any(1), "query": (words != NO_WORD).any(1)}
        for known in ((), ("user",), ("query",), ("user", "query")):
            alike = torch.stack([x == (s in known) for s, x in there.items()]).all(0)
            rows = alike.nonzero()[:, 0]
            if len(rows):
                wanted = ("item",) if "query" in known else ("query", "item")
                table[rows] = self._mean(users[rows], words[rows], wanted, known)
        return table

    def _mean(self, users: Tensor, words: Tensor, wanted: Sequence[str], given: Sequence[str]) -> Tensor:
        draws, n = self.config.samples, len(users)
        known = {s: x for s, x in self.latents(users, words).items() if s in given}
        found = self.draw({s: x.repeat_interleave(draws, 0) for s, x in known.items()}, wanted, list(range(draws)) * n)
        ignored = torch.zeros(len(found["item"]), self.config.dim)
        levels = dict.fromkeys(STREAMS, 1.0) | dict.fromkeys(given, 0.0) | dict.fromkeys(wanted, self.config.end)
        t = {s: torch.full((len(ignored),), level) for s, level in levels.items()}
        out = self.network({s: found.get(s, ignored) for s in STREAMS}, t)
        log_p = self.log_items(out["item"]).log_softmax(1).unflatten(0, (n, draws))
        return log_p.logsumexp(1) - math.log(draws)

    def draw(self, given: Joint, wanted: Sequence[str], seeds: Sequence[int]) -> Joint:
        """Latents at the timestep `end`, by the engine's sampling.

        Args:
            given: what is known, (B, d) each; what is neither given nor wanted is ignored.
            wanted: what is sampled.
            seeds: one a draw; equal seeds share their noise, so a user's list is the same in any batch.
        """
        return sample(
            LatentDenoiser(self, wanted),
            self.network.process,
            dict.fromkeys(STREAMS, (self.config.dim,)),
            assign_roles(STREAMS, wanted, list(given)),
            seeds,
            given=given,
            guidance=Guidance(scale=self.config.guidance),
            steps=self.config.steps,
            end=self.config.end,
        )

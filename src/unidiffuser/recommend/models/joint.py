"""One joint over user, query and item, asked by roles: what `diffusion` and its control `masked` share.

Each event is three latents, one stream each, all of d numbers of about unit variance:

    item    a learnt vector on the sphere, sqrt(d) e_i
    query   half the sum of its words' vectors, sqrt(d) / 2 sum of e_w
    user    what the user has had: sqrt(d) times the direction of the sum of their items' vectors, without the event
            itself

so a user costs no parameter, and one who comes later is known by their history. The latents are noised with a timestep
of their own each (`timesteps.draw_timesteps`), and one network says of every noisy latent which item, which words and
whose history it was: cross-entropy over items, over the batch's users, and a Poisson rate for every word,

    p(i | x_t) ~ exp(h_i(x_t) . e_i + b_i),      rate(w | x_t) = exp(h_q(x_t) . e_w + b_w)   (up to `MAX_WORDS`).

Their means are the clean estimates, E[x_i] = sqrt(d) sum of p(i) e_i and E[x_q] = sqrt(d) / 2 sum of rate(w) e_w, so
the model is a Denoiser and all of the engine applies to it: roles, solvers, guidance. A recommendation has no query:
its query is ignored (t = 1) and not learnt from. The cross-entropy is what keeps jointly trained vectors from
collapsing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.joint import Joint, expand
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.process import PROCESSES
from unidiffuser.recommend.events import MAX_WORDS, NO_WORD, UNKNOWN, Events, Sizes
from unidiffuser.recommend.graph import Link
from unidiffuser.recommend.models import Batch, Loss, Model
from unidiffuser.recommend.models.factors import products
from unidiffuser.timesteps import draw_timesteps

STREAMS = ("user", "query", "item")


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """The settings of a joint model."""

    dim: int = 64
    """Numbers in a latent."""
    width: int = 128
    """Width of the network."""
    depth: int = 1
    """Residual layers of the network."""
    ends: float = 0.4
    """The share of timesteps exactly at 0, and at 1. At 0.5 nothing lies between: masking, and no diffusion."""
    process: str = "cosine"
    """The noising process."""
    draws: int = 2
    """Draws of the timesteps for every event of a batch."""
    temperature: float = 1.0
    """What the scale of the logits starts at, as 1 / temperature."""
    query: float = 0.3
    """Weight of the words' error."""
    user: float = 0.1
    """Weight of the users' error."""

    def __post_init__(self) -> None:
        if min(self.dim, self.width, self.depth, self.draws) < 1 or self.width % 2:
            raise ValueError("dim, depth and draws are at least 1, and width is an even number")
        if not (0 <= self.ends <= 0.5 and self.temperature > 0 and self.query >= 0 and self.user >= 0):
            raise ValueError("ends lies between 0 and 0.5, temperature is above 0, the weights are at least 0")
        if self.process not in PROCESSES:
            raise ValueError(f"there is no process {self.process!r}; there are {', '.join(PROCESSES)}")


class Fusion(nn.Module):
    """Noisy latents -> one vector a stream, whose products with the stream's own vectors are logits.

    A latent is weighed by alpha(t), its best linear estimate from x_t, so that pure noise says exactly nothing.
    Straight connections carry what is a sum in the logarithm: what the others say, and alpha / sigma^2 x_t, the
    evidence of a stream about itself. A residual network adds the rest.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        d = config.dim
        self.process = PROCESSES[config.process]()
        self.net = MLP(MLPConfig(streams=dict.fromkeys(STREAMS, (d,)), dim=config.width, depth=config.depth))
        for last in self.net.head[1].parameters():
            nn.init.zeros_(last)
        self.says = nn.Parameter(torch.full((3, 3), 1 / config.temperature) / math.sqrt(d))

    def forward(self, xt: Joint, t: Mapping[str, Tensor]) -> Joint:
        known = {s: x * expand(self.process.alpha(t[s]).to(x), x) for s, x in xt.items()}
        out = self.net(known, t)
        for k, stream in enumerate(STREAMS):
            for j, other in enumerate(STREAMS):
                weight = expand(self.evidence(t[stream]), xt[stream]) if j == k else 1.0
                out[stream] = out[stream] + self.says[k, j] * weight * known[other]
        return out

    def evidence(self, t: Tensor) -> Tensor:
        """1 / sigma^2, bounded."""
        return (1 / self.process.sigma(t).square().clamp(min=0.05)).float()


class JointModel(Model):
    """The base of the joint models."""

    config: JointConfig

    def __init__(self, config: JointConfig, sizes: Sizes, train: Events) -> None:
        super().__init__(config, sizes, train)
        d = config.dim
        self.item = nn.Parameter(torch.randn(sizes.items, d) / math.sqrt(d))
        self.word = nn.Parameter(torch.randn(sizes.words, d) / math.sqrt(d))
        self.item_bias, self.word_bias = nn.Parameter(torch.zeros(sizes.items)), nn.Parameter(torch.zeros(sizes.words))
        self.network = Fusion(config)
        self.had = Link(train.user, train.item, torch.ones(len(train)), (sizes.users, sizes.items))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """e_i (I, d) and e_w (V, d) of length 1; word 0 is zero."""
        words = F.normalize(self.word, dim=1)
        return F.normalize(self.item, dim=1), torch.cat([torch.zeros_like(words[:1]), words[1:]])

    def clean(self, items: Tensor, words: Tensor, users: Tensor, of: Tensor, asked: Tensor) -> Joint:
        """The latents of events.

        Args:
            items, words: the vectors; users: (B, d) sums of the items that each user has had.
            of: (B,) the items; asked: (B, W) the queries.
        """
        scale = math.sqrt(self.config.dim)
        return {
            "user": scale * F.normalize(users, dim=1),
            "query": scale / 2 * words[asked].sum(1),
            "item": scale * items[of],
        }

    def loss(self, batch: Batch, epoch: int) -> Loss:
        items, words = self.vectors()
        events = batch.events
        history = (self.had @ items)[events.user] - items[events.item]
        x0 = self.clean(items, words, history, events.item, events.words)
        again = self.config.draws
        x0 = {s: x.repeat(again, 1) for s, x in x0.items()}
        search, target = events.is_search.repeat(again), events.item.repeat(again)
        t = draw_timesteps(STREAMS, len(target), batch.generator, ends=self.config.ends)
        t["query"] = torch.where(search, t["query"], 1.0)
        t["user"] = torch.where((history == 0).all(1).repeat(again), 1.0, t["user"])
        eps = {s: torch.randn(x.shape, generator=batch.generator) for s, x in x0.items()}
        out = self.network({s: self.network.process.add_noise(x, eps[s], t[s]) for s, x in x0.items()}, t)
        counts = {s: (t[s] > 0) & (search if s == "query" else torch.ones_like(search)) for s in STREAMS}
        errors = {
            "item": F.cross_entropy(out["item"] @ items.T + self.item_bias, target, reduction="none"),
            "query": self._word_error(out["query"], words, events.words.repeat(again, 1)),
            "user": self._user_error(out["user"], x0["user"][: len(events)], events.user),
        }
        means = {s: (e * counts[s]).sum() / counts[s].sum().clamp(min=1) for s, e in errors.items()}
        weights = {"item": 1.0, "query": self.config.query, "user": self.config.user}
        total = torch.stack([weights[s] * mean for s, mean in means.items()]).sum()
        return total, {s: mean.detach() for s, mean in means.items()}

    def _word_error(self, out: Tensor, words: Tensor, asked: Tensor) -> Tensor:
        """The negative logarithm of a Poisson law of every word's count, up to what does not depend on the rates,
        (B,)."""
        log_rates = self.log_rates(out, words)
        stated = log_rates.gather(1, asked).masked_fill(asked == NO_WORD, 0.0)
        return log_rates.exp().sum(1) - stated.sum(1)

    def log_rates(self, out: Tensor, words: Tensor) -> Tensor:
        """(B, V); "no word" has rate 0. Rates beyond the longest query grow linearly only, so that none is infinite."""
        table = out @ words.T + self.word_bias
        most = math.log(MAX_WORDS)
        table = table.clamp(max=most) + (table - most).relu().log1p()
        return table.masked_fill(torch.arange(self.sizes.words) == NO_WORD, -torch.inf)

    def _user_error(self, out: Tensor, users: Tensor, who: Tensor) -> Tensor:
        """Cross-entropy over the batch's users, (B,): which of them it was; the same user twice is one."""
        logits = out @ (users / math.sqrt(self.config.dim)).T  # (B', B)
        same = who == who[:, None]
        own = same.repeat(len(out) // len(who), 1)
        return torch.logsumexp(logits, 1) - torch.logsumexp(logits.masked_fill(~own, -torch.inf), 1)

    @torch.no_grad()
    def ready(self) -> None:
        items, words = self.vectors()
        sums = self.had @ items
        users = torch.cat([math.sqrt(self.config.dim) * F.normalize(sums, dim=1), torch.zeros(1, self.config.dim)])
        self.now = {"items": items, "words": words, "users": users}

    @torch.no_grad()
    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        return self.log_items(self.ask(users, words)["item"], items)

    def log_items(self, out: Tensor, items: Tensor | None = None) -> Tensor:
        """log p(i) up to a constant of all items (B, I), or of those named (B, C)."""
        table = products(out, self.now["items"], items)
        return table + (self.item_bias if items is None else self.item_bias[items])

    def mean_of(self, stream: str, out: Tensor) -> Tensor:
        """E[x0] of a stream, (B, d), from what the network says of it."""
        scale = math.sqrt(self.config.dim)
        if stream == "item":
            return scale * self.log_items(out).softmax(1) @ self.now["items"]
        if stream == "query":
            return scale / 2 * self.log_rates(out, self.now["words"]).exp() @ self.now["words"]
        return self.log_users(out).softmax(1) @ self.now["users"][:-1]

    def log_users(self, out: Tensor) -> Tensor:
        """log p(u) up to a constant of all users, (B, U)."""
        # The error compared a user with those of a batch, which came as often as they have events.
        users = self.now["users"][:-1]
        events = torch.bincount(self.train_events.user, minlength=len(users)).to(out)
        return out @ users.T / math.sqrt(self.config.dim) + events.log()

    def latents(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Joint:
        """The latents of what is known, (B, d) each; those of what is not are zero."""
        scale, d = math.sqrt(self.config.dim), self.config.dim
        return {
            "user": self.now["users"][users],
            "query": scale / 2 * self.now["words"][words].sum(1),
            "item": torch.zeros(len(users), d) if items is None else scale * self.now["items"][items],
        }

    def ask(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Joint:
        """The network's answer with what is there given (t = 0) and all else ignored (t = 1)."""
        x = self.latents(users, words, items)
        nothing = {"user": (x["user"] == 0).all(1), "query": ~(words != NO_WORD).any(1)}
        nothing["item"] = torch.full((len(users),), items is None)
        out: Joint = self.network(x, {s: nothing[s].float() for s in STREAMS})
        return out

    @torch.no_grad()
    def word_scores(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        h = self.ask(users, torch.zeros(len(users), 1, dtype=torch.int64), items)["query"]
        return self.log_rates(h, self.now["words"])

    @property
    def names_demand(self) -> bool:
        return True

    @torch.no_grad()
    def user_scores(self, items: Tensor) -> Tensor:
        nobody = torch.full((len(items),), UNKNOWN)
        return self.log_users(self.ask(nobody, torch.zeros(len(items), 1, dtype=torch.int64), items)["user"])

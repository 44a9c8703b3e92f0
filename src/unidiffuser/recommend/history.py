"""A person's own history: find what was made before, and more like what was kept.

An event is a prompt and whether its sample was kept. With one person there is no graph to learn from, but the two laws
are the same ones, and small enough to be fitted in closed form or by Newton's method at every call:

    search        p(prompt | query) ~ p(query | prompt) p(prompt)
                  p(query | prompt) = product over words of (c(w, prompt) + m p(w)) / (|prompt| + m)
                  (a language model with Dirichlet smoothing, Zhai and Lafferty 2004; m = `SMOOTHING`)
    more like it  p(kept | words) = sigma(b + sum of a_w over the prompt's different words),  a ~ N(0, `SPREAD`^2)

The second is the prior of the first, p(prompt) ~ p(kept | prompt), when there is enough to learn it from: `MIN_EVENTS`
prompts and `MIN_EACH` of them kept and as many not. Otherwise it is off, `learnt` is False, and `like_kept` says what
is missing instead of guessing.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMOOTHING = 2.0
SPREAD = 1.0
MIN_EVENTS, MIN_EACH = 20, 5
NEWTON_STEPS = 30
MAX_LEARNT = 2000
"""Words that get a weight of their own: the most frequent ones."""

WORD = re.compile(r"[^\W_]+")


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, in small letters, without signs."""
    return WORD.findall(prompt.lower())


@dataclass(frozen=True)
class Found:
    """One event of the history in an answer."""

    event: int
    """Its place in what was fitted, from 0."""
    score: float
    """A logarithm of a probability up to a constant of the whole answer."""


class PersonalHistory:
    """The events of one person, ready to be asked."""

    def __init__(self, events: Iterable[tuple[str, bool]]) -> None:
        """events: (prompt, kept), the oldest first."""
        listed = [(words_of(prompt), kept) for prompt, kept in events]
        self.prompts = [Counter(words) for words, _ in listed]
        self.kept = [kept for _, kept in listed]
        self.counts = Counter(word for prompt in self.prompts for word in prompt.elements())
        self.weights = self._fit() if not self.missing else {}
        self.bias = self.weights.pop("", 0.0)

    @property
    def missing(self) -> str:
        """What is missing before a taste can be learnt, in words; empty if nothing is."""
        kept, rest = sum(self.kept), len(self.kept) - sum(self.kept)
        if len(self.kept) >= MIN_EVENTS and min(kept, rest) >= MIN_EACH:
            return ""
        return (
            f"{len(self.kept)} samples with {kept} kept are too few to learn a taste from; it takes {MIN_EVENTS}, with "
            f"{MIN_EACH} kept and {MIN_EACH} not"
        )

    @property
    def learnt(self) -> bool:
        """Whether there was enough to learn what is kept."""
        return not self.missing

    def search(self, query: str, k: int = 20) -> list[Found]:
        """The k events whose prompts fit a query best; those without any of its words do not appear.

        An empty query ranks all events by how likely they are kept, or by age, the newest first, if that is not learnt.
        """
        asked = words_of(query)
        places = [n for n, prompt in enumerate(self.prompts) if not asked or any(word in prompt for word in asked)]
        found = [Found(n, self._fit_of(asked, n) + self._prior(self.prompts[n])) for n in places]
        return sorted(found, key=lambda one: (-one.score, -one.event))[:k]

    def like_kept(self, prompts: Sequence[str]) -> list[float]:
        """p(kept) of each prompt.

        Raises:
            ValueError: there is too little history; see `missing`.
        """
        if self.missing:
            raise ValueError(self.missing)
        return [1 / (1 + math.exp(-self._logit(Counter(words_of(prompt))))) for prompt in prompts]

    def _fit_of(self, asked: Sequence[str], event: int) -> float:
        """log p(query | prompt)."""
        prompt, total = self.prompts[event], self.counts.total()
        length = prompt.total()
        # A word that nobody ever used fits every prompt equally badly and is left out.
        return sum(
            math.log((prompt[word] + SMOOTHING * self.counts[word] / total) / (length + SMOOTHING))
            for word in asked
            if self.counts[word]
        )

    def _prior(self, prompt: Counter[str]) -> float:
        return -math.log1p(math.exp(-self._logit(prompt))) if self.learnt else 0.0

    def _logit(self, prompt: Counter[str]) -> float:
        return self.bias + sum(self.weights.get(word, 0.0) for word in prompt)

    def _fit(self) -> dict[str, float]:
        """The weights that are most probable given the history: Newton's method on a concave function."""
        learnt = [word for word, _ in self.counts.most_common(MAX_LEARNT)]
        place = {word: n for n, word in enumerate(learnt, 1)}
        x = torch.zeros(len(self.prompts), len(learnt) + 1, dtype=torch.float64)
        x[:, 0] = 1.0  # the bias, which has no prior
        for row, prompt in enumerate(self.prompts):
            x[row, [place[word] for word in prompt if word in place]] = 1.0
        y = torch.tensor(self.kept, dtype=torch.float64)
        precision = torch.full((x.shape[1],), SPREAD**-2, dtype=torch.float64)
        precision[0] = 0.0
        weights = _newton(x, y, precision)
        return dict(zip(["", *learnt], weights.tolist(), strict=True))


def _newton(x: Tensor, y: Tensor, precision: Tensor) -> Tensor:
    """argmax over a of sum log p(y | x, a) - 1/2 sum precision a^2."""
    a = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(x @ a)
        slope = x.T @ (y - p) - precision * a
        curvature = (x.T * (p * (1 - p))) @ x + precision.diag()
        step = torch.linalg.solve(curvature, slope)
        a = a + step
        if float(step.abs().max()) < 1e-10:
            break
    return a

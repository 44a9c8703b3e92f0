"""A world of inherent and demand intents whose probabilities are known exactly.

A user has a taste (the inherent intent, fixed) and a habit, a distribution over topics. An item has one topic, a style
and a popularity. Every event has a demand, a topic z of its own:

    z | u        ~  habit_u                                                       (Dirichlet(breadth))
    i | u, z     ~  (1 - stray) softmax over the items of topic z of (taste_u . style_i + popularity_i)
                    + stray * uniform over all items
    search       with probability `search`; then 1 to 3 words, each independently
                    one of the words of topic z,  or with probability `wrong` any word at all

and an event whose item the user has had already is drawn again as a whole, so that p(i | u, what u has had) is p(i | u)
restricted to the rest and renormalised. Nothing depends on an event's place in time, so every law that `oracle` states
is exact.

The events of a user are a function of (seed, user) alone. It knows no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_QUERY = 3
MAX_DRAWS = 1000
"""A user who draws so many times as many events as wanted, and still has too few, has no more items to find."""

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The size and the temper of a world."""

    users: int = 3000
    items: int = 1500
    events: int = 8
    """Events of each user, all with different items."""
    seed: int = 0
    topics: int = 20
    words: int = 3
    """Words of each topic."""
    styles: int = 6
    """Numbers in a taste and in a style."""
    breadth: float = 0.2
    """Dirichlet parameter of the habits: small means few topics a user."""
    taste: float = 1.5
    """Length of a taste vector: how much style matters."""
    popularity: float = 0.5
    """Standard deviation of the items' popularity."""
    stray: float = 0.05
    """Share of events with any item at all."""
    search: float = 0.4
    """Share of events with a query."""
    wrong: float = 0.1
    """Share of words that are any word at all."""

    def __post_init__(self) -> None:
        counts = {"users": self.users, "events": self.events, "topics": self.topics, "words": self.words}
        for name, value in {**counts, "styles": self.styles}.items():
            if value < 1:
                raise ValueError(f"a world needs at least one of its {name}, not {value}")
        if self.items < max(self.topics, self.events):
            needed = max(self.topics, self.events)
            raise ValueError(
                f"a world with {self.topics} topics and {self.events} different items a user needs at least "
                f"{needed} items, not {self.items}"
            )
        for name in ("stray", "search", "wrong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"the share {name!r} must lie between 0 and 1, not {getattr(self, name)}")
        if not (self.breadth > 0 and self.taste >= 0 and self.popularity >= 0 and self.seed >= 0):
            raise ValueError("breadth must be above 0, and taste, popularity and the seed at least 0")


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """The hidden truth about users and items, in float64."""

    config: WorldConfig
    habit: Numbers
    """(U, K) the probability of each topic for each user."""
    taste: Numbers
    """(U, S)."""
    style: Numbers
    """(I, S)."""
    popularity: Numbers
    """(I,)."""
    topic: Numbers
    """(I,) int64, the topic of each item."""

    @classmethod
    def make(cls, config: WorldConfig) -> "World":
        """Draw the truth of a world."""
        c, dice = config, np.random.default_rng([config.seed, 0])
        direction = dice.standard_normal((c.users, c.styles))
        topic = np.concatenate([np.arange(c.topics), dice.integers(c.topics, size=c.items - c.topics)])
        return cls(
            config=config,
            habit=dice.dirichlet(np.full(c.topics, c.breadth), size=c.users),
            taste=c.taste * direction / np.linalg.norm(direction, axis=1, keepdims=True),
            style=dice.standard_normal((c.items, c.styles)),
            popularity=c.popularity * dice.standard_normal(c.items),
            topic=dice.permutation(topic),
        )

    def within_topic(self, users: Numbers) -> Numbers:
        """The softmax over each topic's items, (B, I): it sums to 1 over the items of every topic."""
        logits = self.taste[users] @ self.style.T + self.popularity
        weights = np.exp(logits - logits.max(1, keepdims=True))
        totals = np.zeros((len(users), self.config.topics))
        for z in range(self.config.topics):
            totals[:, z] = weights[:, self.topic == z].sum(1)
        return weights / totals[:, self.topic]

    def draw(self) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
        """Every event as (user, item, topic of the demand, words), each user's in the order of time."""
        for user in range(self.config.users):
            dice = np.random.default_rng([self.config.seed, 1, user])
            items, topics = self._items_of(user, dice)
            for item, z in zip(items, topics, strict=True):
                yield user, item, z, self._words_of(z, dice)

    def _items_of(self, user: int, dice: np.random.Generator) -> tuple[list[int], list[int]]:
        """The different items of one user and the demands behind them: repeats are drawn again as a whole."""
        c, chosen = self.config, dict[int, int]()
        within = self.within_topic(np.array([user]))[0]
        members = [np.flatnonzero(self.topic == z) for z in range(c.topics)]
        for _ in range(MAX_DRAWS * c.events):
            if len(chosen) == c.events:
                return list(chosen), list(chosen.values())
            z = int(dice.choice(c.topics, p=self.habit[user]))
            if dice.random() < c.stray:
                item = int(dice.integers(c.items))
            else:
                item = int(dice.choice(members[z], p=within[members[z]] / within[members[z]].sum()))
            chosen.setdefault(item, z)
        raise ValueError(
            f"user {user} found only {len(chosen)} different items where {c.events} were wanted; "
            "ask for fewer events, more items, or a larger share `stray`"
        )

    def _words_of(self, z: int, dice: np.random.Generator) -> tuple[int, ...]:
        """The query of an event, empty for a recommendation."""
        c = self.config
        if dice.random() >= c.search:
            return ()
        words = c.words * z + dice.integers(c.words, size=dice.integers(1, MAX_QUERY + 1))
        anything = dice.integers(c.topics * c.words, size=len(words))
        return tuple(np.where(dice.random(len(words)) < c.wrong, anything, words).tolist())

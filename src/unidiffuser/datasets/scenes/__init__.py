"""A world with known truth: coloured shapes on a ground, in pictures and in words, endless and the same everywhere.

    Scenes(split="train")[i]  ->  {"image": 64 x 64 RGB picture, "text": sentence}

Sample i is a function of (version, seed, split, i) alone, so access is random, nothing is stored, and training resumes
anywhere. Both directions can be read back without a model: `grammar.read` for sentences, `oracle.read` for pictures.
`facts` says what can be true, `render` paints it, `grammar` words it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index as whole

import numpy as np
from PIL import Image

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.scenes import facts, grammar, render
from unidiffuser.datasets.scenes.facts import Scene

VERSION = 1  # any change of the pixels, the sentences or their distribution is a new version


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Pairs of picture and sentence about the same facts.

    seed: another seed, another endless set. split: "train" and "test" share one law and no key; "heldout" always shows
    a pair of colour and shape that the others never show. max_objects: 1 to 3. length: what `len` says; it changes no
    sample.
    """

    seed: int = 0
    split: str = "train"
    max_objects: int = 2
    length: int = 1_000_000
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.split not in facts.SPLITS:
            raise ValueError(f"split {self.split!r} is unknown; known are {', '.join(facts.SPLITS)}")
        if self.max_objects not in facts.COUNTS:
            raise ValueError(f"max_objects is 1, 2 or 3, not {self.max_objects}")
        if self.version != VERSION:
            raise ValueError(f"this release makes version {VERSION} of the scenes, not {self.version}")
        if not 0 <= self.seed < 2**63 or self.length < 0:
            raise ValueError(f"seed must lie in 0 .. 2^63 - 1 and length be 0 or more, not {self.seed}, {self.length}")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Image.Image | str]:
        pixels, sentence = self._sample(index)
        return {"image": Image.fromarray(pixels), "text": sentence}

    def label_of(self, index: int) -> int:
        """There is one source."""
        return 0

    def facts(self, index: int) -> Scene:
        """The whole truth about sample `index`, in normal form."""
        return facts.draw(self._dice(index), self.split, self.max_objects)

    def batch(self, indices: Iterable[int]) -> tuple[render.Bytes, list[str]]:
        """Pictures, uint8 (B, 64, 64, 3), and their sentences."""
        samples = [self._sample(i) for i in indices]
        pixels = np.empty((len(samples), render.WIDTH, render.WIDTH, 3), np.uint8)
        for k, (picture, _) in enumerate(samples):
            pixels[k] = picture
        return pixels, [sentence for _, sentence in samples]

    def _dice(self, index: int) -> Dice:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside 0 .. {self.length - 1}")
        return Dice(self.version, self.seed, facts.SPLITS.index(self.split), self.max_objects, whole(index))

    def _sample(self, index: int) -> tuple[render.Bytes, str]:
        dice = self._dice(index)
        scene = facts.draw(dice, self.split, self.max_objects)
        sentence = grammar.write(scene, dice)
        return render.paint(render.place(scene, dice), scene.background), sentence

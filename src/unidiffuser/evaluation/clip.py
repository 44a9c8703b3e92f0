"""CLIP score (Hessel et al. 2021, eq. 1, scaled by 100): how well a picture and a text go together in the eyes of CLIP.

    score = 100 max(cos(E_I(picture), E_T(text)), 0)

E_I and E_T are the projected embeddings of a CLIP in the layout of the Hugging Face hub: a folder, or a name that is
looked for in the local cache. Its settings are read as plain numbers and its weights as tensors, through the
transformers library. A text that is too long for it is cut, as it always is with this score.

    B pictures or texts · D width of the projection
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from unidiffuser.checkpoints import hub
from unidiffuser.evaluation.numbers import mean
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial
from unidiffuser.modalities.stable_diffusion import clip_square, standardised
from unidiffuser.pretrained import asleep

BATCH = 32


class Clip:
    """Both encoders of a CLIP."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError (ModelError, MissingPackage) if it holds no whole CLIP, or transformers is missing."""
        reader = hub.clip_tokenizer(folder)
        vision, text = hub.clip_vision(folder), hub.clip_text_projected(folder, reader.end)
        if vision.settings["projection_dim"] != text.settings["projection_dim"]:
            raise ValueError(f"the two encoders in {folder} have projections of different widths; get a whole CLIP")
        self.side = int(vision.settings["image_size"])
        self.vision = asleep("clip_vision", vision.settings, vision.weights).wake()
        self.text = asleep("clip_text_projected", text.settings, text.weights).wake()
        self.tokenizer = Tokenizer.from_str(json.dumps(reader.saved))
        self.tokenizer.enable_truncation(int(text.settings["max_position_embeddings"]))
        self.tokenizer.enable_padding(pad_id=reader.pad)  # behind the end, where the encoder does not look

    def pictures(self, pictures: Sequence[Any]) -> Tensor:
        """B pictures -> (B, D)."""
        pixels = standardised(torch.stack([clip_square(picture.convert("RGB"), self.side) for picture in pictures]))
        embedded: Tensor = self.vision(pixel_values=pixels).image_embeds
        return embedded

    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, D)."""
        tokens = torch.tensor([found.ids for found in self.tokenizer.encode_batch(list(texts))])
        embedded: Tensor = self.text(input_ids=tokens).text_embeds
        return embedded

    @torch.inference_mode()
    def scores(self, pictures: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """The score of each picture with the text in its place, 0 to 100."""
        found: list[float] = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            cosines = F.cosine_similarity(self.pictures(pictures[rows]), self.texts(texts[rows]))
            found += (100 * cosines.clamp(min=0)).tolist()
        return found


def clip_score(trial: Trial) -> Rows:
    """A row for each picture given each text, and each text given each picture.

    Truth is what true pairs get; beside it stands what true pictures get with the texts of other pairs.
    """
    kinds = {name: trial.model.modalities[name].media_type for name in trial.reference.names}
    images, texts = ([name for name in kinds if kinds[name] == kind] for kind in ("image", "text"))
    if not (images and texts):
        raise NotMeasured("a CLIP score is between a picture and a text, and these pairs do not have both")
    try:
        clip = Clip(hub.locate(trial.clip, download=trial.download))
    except ValueError as error:
        raise NotMeasured(f"the CLIP score needs a CLIP, see --clip: {error}") from error
    for image in images:
        for text in texts:
            yield from _rows(trial, clip, image, text)


def _rows(trial: Trial, clip: Clip, image: str, text: str) -> Rows:
    """Both conditionals of one picture and one text."""
    asked = trial.reference.asked
    true = clip.scores([pair[image] for pair in asked], [pair[text] for pair in asked])
    swapped = zip(asked, asked[1:] + asked[:1], strict=True)
    wrong = [(one[image], other[text]) for one, other in swapped if one[text] != other[text]]
    others = {"score of wrong pairs": mean(clip.scores(*map(list, zip(*wrong, strict=True))))} if wrong else {}
    for of, given in ((image, text), (text, image)):
        drawn = trial.draw(of, (given,))
        told = [trial.pair(k)[given] for k in range(len(drawn))]
        scores = clip.scores(drawn, told) if of == image else clip.scores(told, drawn)
        yield (
            f"{of} given {given}: CLIP score",
            {
                "what": f"100 times the cosine of {image} and {text} in the eyes of CLIP, 0 where it is negative",
                "features": f"clip ({trial.clip})",
                "numbers": {"score": mean(scores, sum(true) / len(true)), **others},
                "n": len(drawn),
            },
        )

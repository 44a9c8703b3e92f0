"""Text of the released UniDiffuser: a sentence <-> 77 tokens of 64 numbers.

    encode   the last hidden state of CLIP's text encoder, (77, 768), through a linear layer: (77, 64), unscaled
    decode   through a linear layer to (77, 768): the prefix that GPT-2 continues with a caption

A sentence is padded with CLIP's padding token, which the network sees as any other; one that is too long is refused,
not cut. Captions are searched or sampled as `captioning` says. A model that was converted without a part says so when
the part is needed. The parts need the transformers library (the extra "released").

It knows no picture and no diffusion.

    B sentences · L tokens · E width of the encoder · D width of the latent · W width of the decoder
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from unidiffuser.captions import Captioning, captions
from unidiffuser.modalities import Modality, check_whole, expect_keys, expect_shape
from unidiffuser.modalities.text import plain, read_text, write_text
from unidiffuser.offload import Offloaded, Weights
from unidiffuser.pretrained import asleep, library

PARTS = {"encoder": "clip_text", "decoder": "gpt2"}
MAX_LENGTH = 4096


class ClipText(Modality[str]):
    """Sentences as CLIP reads them, captions as GPT-2 writes them."""

    kind: ClassVar[str] = "clip_text"
    media_type: ClassVar[str] = "text"
    suffix: ClassVar[str] = ".txt"
    lossy: ClassVar[bool] = True

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: "length" L, "width" D, "pad" and "end": token numbers, "captioning": fields of `Captioning`,
                "encoder" and "decoder": the settings of the parts, None for one that is missing, and the tokenizers,
                "clip_tokenizer" and "gpt2_tokenizer", as JSON or None.
            state: "encoder.*", "decoder.*", and the linear layers "encode_prefix.*", (D, E), and "decode_prefix.*",
                (W, D).
        """
        self._config, self.weights = dict(config), Weights.of(state)
        self.length, self.width = config["length"], config["width"]
        self.captioning = Captioning(**config["captioning"])
        self.parts = {
            name: asleep(kind, config[name], self.weights.under(f"{name}."))
            for name, kind in PARTS.items()
            if config[name] is not None
        }
        self.reading, self.writing = _tokenizer(config["clip_tokenizer"]), _tokenizer(config["gpt2_tokenizer"])

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """One sequence (L, D)."""
        return {"": (self.length, self.width)}

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None, *, keep: bool = True) -> None:
        for each in self.parts.values():
            each.place(device, dtype or torch.float32, keep=keep)

    def check(self, raw: Any) -> str:
        """The sentence with single blanks; ValueError if it is empty, too long or not text."""
        text = plain(raw)
        self.tokens(text)
        return text

    def tokens(self, text: str) -> list[int]:
        """The L tokens of a sentence: begin, words, end, padding."""
        ids = self._tokenizer("clip_tokenizer", self.reading).encode(text).ids
        if len(ids) > self.length:
            raise ValueError(
                f"the text has {len(ids)} tokens, its begin and end counted; this model takes at most {self.length}: "
                "shorten it"
            )
        return [*ids, *[self._config["pad"]] * (self.length - len(ids))]

    def encode(self, raws: Sequence[str]) -> dict[str, Tensor]:
        """B sentences -> {"": (B, L, D)}."""
        if not raws:
            return {"": torch.zeros(0, *self.streams[""])}
        tokens = torch.tensor([self.tokens(plain(raw)) for raw in raws])
        return {"": self._encode(tokens)}

    def _encode(self, tokens: Tensor) -> Tensor:
        with torch.inference_mode(), self._part("encoder").loaded() as encoder:
            hidden = encoder(input_ids=tokens.to(self.parts["encoder"].device)).last_hidden_state  # (B, L, E)
            latents = F.linear(hidden, *self._linear("encode_prefix", hidden))  # (B, L, D)
        return latents.float().cpu().clone()

    def decode(self, streams: Mapping[str, Tensor]) -> list[str]:
        """{"": (B, L, D)} -> B captions."""
        return self.decode_seeded(streams, range(len(streams[""])))

    def decode_seeded(self, streams: Mapping[str, Tensor], seeds: Sequence[int]) -> list[str]:
        """As `decode`; the seeds matter where captions are sampled."""
        expect_shape("the latent of a text", streams[""], (-1, *self.streams[""]))
        writing = self._tokenizer("gpt2_tokenizer", self.writing)
        if not len(streams[""]):
            return []
        with torch.inference_mode(), self._part("decoder").loaded() as decoder:
            x = streams[""].to(next(decoder.parameters()))
            prefix = F.linear(x, *self._linear("decode_prefix", x))  # (B, L, W)
            rows = captions(_Continuation.begin(decoder, prefix), self._config["end"], self.captioning, seeds)
        return [" ".join(writing.decode(row).split()) for row in rows]

    def choose_decoding(self, **options: Any) -> None:
        """Fields of `captions.Captioning`, such as top_p=0.9."""
        self.captioning = replace(self.captioning, **options)

    def empty(self) -> dict[str, Tensor]:
        """The encoding of the sentence without words."""
        return {"": self._encode(torch.tensor([self.tokens("")]))}

    def read(self, path: str | Path) -> str:
        """The sentence in a UTF-8 text file."""
        return self.check(read_text(path))

    def write(self, raw: str, path: str | Path) -> None:
        """Write a sentence and a line break, in UTF-8."""
        write_text(raw, path)

    def config(self) -> dict[str, Any]:
        """See `__init__`."""
        return self._config | {"captioning": asdict(self.captioning)}

    def state(self) -> dict[str, Tensor]:
        """See `__init__`."""
        return dict(self.weights)

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec of these parts."""
        names = ["length", "width", "pad", "end", "captioning", *PARTS, "clip_tokenizer", "gpt2_tokenizer"]
        expect_keys("config of a clip_text modality", config, names)
        for name in ("length", "width", "pad", "end"):
            check_whole(f"{name} of a clip_text modality", config[name], 0 if name in ("pad", "end") else 1, 10**6)
        shapes = Weights.of(state).shapes
        sides = {
            "encode_prefix": (config["width"], (config["encoder"] or {}).get("hidden_size")),
            "decode_prefix": ((config["decoder"] or {}).get("n_embd"), config["width"]),
        }
        for name, (out, into) in sides.items():
            if out and into and (shapes.get(f"{name}.weight"), shapes.get(f"{name}.bias")) != ((out, into), (out,)):
                raise ValueError(f"the linear layer {name} of a clip_text modality must be {into} -> {out}")
        return cls(config, state)

    @classmethod
    def fit(cls, *raws: Any, **options: Any) -> Self:
        """Not possible: its parts are pretrained."""
        raise ValueError("a clip_text modality is not fitted; it comes with a converted model")

    def _linear(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one of the linear layers."""
        return self.weights[f"{name}.weight"].to(like), self.weights[f"{name}.bias"].to(like)

    def _part(self, name: str) -> Offloaded[Any]:
        if name not in self.parts:
            raise ValueError(f"this model was converted without its text {name}; convert it again with that part")
        return self.parts[name]

    def _tokenizer(self, name: str, tokenizer: Tokenizer | None) -> Tokenizer:
        if tokenizer is None:
            raise ValueError(f"this model was converted without its {name}; convert it again with that part")
        return tokenizer


class _Continuation:
    """What GPT-2 remembers of R sequences; see `captions.Continuation`."""

    def __init__(self, decoder: Any, cache: Any, output: Any) -> None:
        self.decoder, self.cache = decoder, cache
        self.logits: Tensor = output.last_hidden_state[:, -1] @ decoder.get_input_embeddings().weight.T

    @classmethod
    def begin(cls, decoder: Any, prefix: Tensor) -> "_Continuation":
        """The sequences that begin with a prefix (R, P, W)."""
        cache = library("transformers", "writing captions").DynamicCache(config=decoder.config)
        return cls(decoder, cache, decoder(None, cache, inputs_embeds=prefix, use_cache=True))

    def take(self, rows: Tensor) -> "_Continuation":
        """These rows of the cache, in this order."""
        self.cache.batch_select_indices(rows)
        return self

    def extend(self, tokens: Tensor) -> "_Continuation":
        """Read one more token a sequence; the cache grows."""
        return _Continuation(self.decoder, self.cache, self.decoder(tokens[:, None], self.cache, use_cache=True))


def _tokenizer(saved: Any) -> Tokenizer | None:
    """A tokenizer from its JSON. A text that looks like a special token is a text all the same."""
    if saved is None:
        return None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(saved))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError("a saved tokenizer of a clip_text modality is damaged; convert the model again") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

"""A whole run as typed values: what `train` carries out, and what a run folder is compared with."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unidiffuser.checkpoints import Settings
from unidiffuser.datasets import Pairs
from unidiffuser.modalities import Modality
from unidiffuser.process import Prediction

Sharding = Literal["none", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How a model is optimised."""

    steps: int
    """Optimiser steps in all."""
    batch: int
    """Samples a step, over all processes."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """The beginning of a weight's name -> its learning rate as a multiple of `lr`; 1 where absent."""
    warmup: int = 200
    """Steps of linear warm-up."""
    cooldown: float = 0.2
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moments."""
    muon: float = 0.0
    """Peak learning rate of Muon for the matrices inside blocks; 0: AdamW for all weights."""
    ema: float = 0.9995
    """Decay a step of the averaged weights that become the model; shorter while the run is young."""
    more_ema: tuple[float, ...] = ()
    """Decays of further averages; each becomes a model of its own beside the first."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    accumulate: int = 1
    """Parts that a step's batch is cut into, one forward and backward each: less memory, the same step."""
    recompute: bool = False
    """Whether each block's activations are computed again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Whether the forward pass goes through torch.compile."""
    autocast: bool = True
    """Matrix products in bfloat16."""
    save_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of the weights, the data order, the timesteps and the noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "log_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("warmup", "seed"):
            _whole(name, getattr(self, name), 0)
        for name, factor in self.rates.items():
            _number(f"the rate of {name!r}", factor, 0.0, math.inf, open_at_zero=True)
        _number("lr", self.lr, 0.0, math.inf, open_at_zero=True)
        for name in ("clip", "weight_decay", "muon"):
            _number(name, getattr(self, name), 0.0, math.inf)
        _number("cooldown", self.cooldown, 0.0, 1.0)
        for decay in (self.ema, *self.more_ema, *self.betas):
            _number("an average's decay", decay, 0.0, 1.0)
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be cut into {self.accumulate} equal parts")
        if len({self.ema, *self.more_ema}) <= len(self.more_ema):
            raise ValueError(f"the decays {(self.ema, *self.more_ema)} of the averages must differ from one another")


@dataclass(frozen=True, kw_only=True)
class Adapting:
    """Training low-rank additions to some linear layers of a trained model, and nothing else (LoRA)."""

    rank: int
    """The rank of every addition."""
    alpha: float = 0.0
    """The addition counts alpha / rank times; 0: once."""
    layers: tuple[str, ...] = ("attention", "mlp", "skip")
    """A layer is adapted if one of these words is a part of its dotted name."""

    def __post_init__(self) -> None:
        _whole("the rank of an adapter", self.rank, 1)
        _number("the alpha of an adapter", self.alpha, 0.0, math.inf)

    @property
    def scale(self) -> float:
        """How much the additions count."""
        return self.alpha / self.rank if self.alpha else 1.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A whole run, from data to a saved model."""

    name: str
    """What the model is called."""
    pairs: Pairs
    """The data: modality -> raw value."""
    values: Callable[[str, int], Iterator[Any]] | None = None
    """(modality, most) -> raw values to fit its codec on; None: those of the first pairs."""
    encoders: Mapping[str, Modality[Any]] | None = None
    """The fitted codecs, of data that were encoded before; None: they are fitted to the data."""
    data: str = ""
    """What names the data in a run folder; their repr if empty."""
    fitted_on: int
    """How many samples the codecs' statistics and the tokenizer are taken from."""
    codecs: Mapping[str, Mapping[str, Any]]
    """Modality -> {"kind": file of `modalities`, "autoencoder": its config if it has one, and options of `fit`}."""
    autoencoder_training: OptimiserSettings | None = None
    """How the autoencoders of `codecs` are optimised, if there are any."""
    network: Mapping[str, Any]
    """The network's description, as `networks.build` takes it, without the streams."""
    process: str
    """The noising process, a row of `process.PROCESSES`."""
    prediction: Prediction
    """What the network puts out."""
    space: Prediction
    """Where its error is measured."""
    max_scale: float
    """The bound on that error's growth towards t = 0; see `losses.Objective`."""
    ends: float
    """The share of timesteps exactly at 0, and at 1; see `timesteps.draw_timesteps`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Stream -> weight of its error; 1 where absent."""
    training: OptimiserSettings
    """How the network is optimised."""
    start: str = ""
    """The model whose weights training begins from; empty: fresh ones."""
    start_sha256: str = ""
    """The sha256 of that model, of which there may come to be another in the same place; see `warm.pinned`."""
    adapter: Adapting | None = None
    """Train only low-rank additions to the model of `start`; None: all weights."""
    settings: Settings
    """How the finished model is sampled unless the user says otherwise."""
    workers: int = 1
    """Loader processes; they change no number."""
    preview_every: int = 0
    """Steps between previews, which are made from checkpoints; 0: none."""
    tensorboard: bool = False
    """Whether the figures also go to RUN/network/tensorboard."""
    sharding: Sharding = "none"
    """How several processes share the network: every one has a whole copy, or each a part of it (fsdp)."""

    def __post_init__(self) -> None:
        _whole("workers", self.workers, 0)
        _whole("preview_every", self.preview_every, 0)
        if self.sharding not in ("none", "fsdp"):
            raise ValueError(f"the sharding is 'none' or 'fsdp', not {self.sharding!r}")
        if self.sharding == "fsdp" and self.training.muon:
            raise ValueError(
                "Muon needs whole matrices, and the sharding 'fsdp' gives each process a part of them; "
                "set training.muon=0, or leave the sharding at none"
            )
        if self.adapter is not None and not self.start:
            raise ValueError("an adapter adds to a trained model; say which one with --start MODEL")
        trained = [name for name, entry in self.codecs.items() if entry.get("autoencoder")]
        if trained and self.autoencoder_training is None:
            raise ValueError(f"the autoencoder of {trained[0]!r} needs settings of its training")


GIVEN = ("pairs", "data", "values", "encoders")
"""What is no setting but the data themselves, and what comes with them."""
PINNED = "start_sha256"
"""What a run finds out when it begins. Older runs did not, and theirs may be any."""

FREE: tuple[str, ...] = (
    "name",
    "settings",
    "workers",
    "preview_every",
    "tensorboard",
    "sharding",
    "training.recompute",
)
FREE += tuple(f"training.{name}" for name in ("steps", "cooldown", "save_every", "log_every", "compile", "accumulate"))
"""What may change when a run goes on: it changes no sample that was seen, nor what the weights mean."""


def describe(preset: Preset) -> dict[str, Any]:
    """The preset as JSON, for the saved model and for the run folder."""
    values = {f: getattr(preset, f) for f in preset.__dataclass_fields__ if f not in (*GIVEN, PINNED)}
    plain = {name: asdict(v) if name in _NESTED and v is not None else v for name, v in values.items()}
    plain["pairs"] = preset.data or repr(preset.pairs)
    if preset.start_sha256:
        plain[PINNED] = preset.start_sha256
    return dict(json.loads(json.dumps(plain)))


_NESTED = ("autoencoder_training", "training", "adapter", "settings")


def settled(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description as dotted name -> value, without what may change when a run goes on.

    Descriptions of older runs are understood: they name a text and an autoencoder in the place of codecs.
    """
    described = dict(described)
    if "codecs" not in described and "autoencoder" in described:
        image = {"kind": "image", "autoencoder": described.pop("autoencoder")}
        described["codecs"] = {"image": image, "text": {"kind": "text", **described.pop("text")}}
    flat = _flat(described)
    return {name: x for name, x in flat.items() if not any(name == f or name.startswith(f + ".") for f in FREE)}


def differences(mine: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, one line each; a setting that one of them lacks has its default."""
    a, b = _defaults() | settled(mine), _defaults() | settled(before)
    if PINNED not in a or PINNED not in b:
        a, b = ({name: x for name, x in each.items() if name != PINNED} for each in (a, b))
    return [
        f"{name}: it was {_shown(b.get(name))}, now {_shown(a.get(name))}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _defaults() -> dict[str, Any]:
    """Settings that older descriptions may lack."""
    new = {"more_ema": [], "accumulate": 1, "recompute": False, "compile": False, "rates": {}}
    return settled({"training": new, "autoencoder_training": new, "start": "", "adapter": None, "weights": {}})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {n: x for key, part in value.items() for n, x in _flat(part, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value or None if isinstance(value, dict) else value}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, not {value!r}")


def _number(name: str, value: Any, least: float, most: float, open_at_zero: bool = False) -> None:
    good = not isinstance(value, bool) and isinstance(value, int | float) and least <= value <= most
    if not good or not math.isfinite(value) or (open_at_zero and value == 0):
        bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else ("above 0" if open_at_zero else "0 or more")
        raise ValueError(f"{name} must be a number {bounds}, not {value!r}")

"""What clients may send, as strict types: nothing is converted, nothing unknown is let through.

Whether the values make sense for a model (its modalities, its words, its solvers) the model itself says.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SEED = 2**63 - 1
MAX_N = 64
MAX_TEXT = 20_000

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Timestep = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=8192)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[str, Field(min_length=1)] | Annotated[list[Number], Field(min_length=1, max_length=65_536)]
"""A sentence, a data URL or numbers, as the modality's media type has it."""
Verb = Literal["sample", "chain", "interpolate", "score"]


class Strict(BaseModel):
    """The base of all bodies."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ReuseBody(Strict):
    """How inner blocks are reused: faster, and not exact."""

    every: int = Field(2, ge=2, le=100, description="They are computed at the first of every so many evaluations.")
    outer: int = Field(1, ge=1, le=64, description="Pairs of outer blocks that are always computed.")


class Drawn(Strict):
    """How samples are drawn; what is absent is as the model has it."""

    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Of the first sample; random, and told, if absent.")
    steps: int | None = Field(None, ge=1, le=1000, description="Solver steps.")
    solver: str | None = Field(None, max_length=40, description="The solver.")
    guidance: Scale | dict[Name, Scale] | None = Field(None, description="A scale, 0 = off, or one per modality.")
    guidance_interval: Annotated[list[Timestep], Field(min_length=2, max_length=2)] | None = Field(
        None, description="The timesteps of the guided modality between which guidance acts: low, high."
    )
    guidance_against: Literal["marginal", "unconditional", "empty"] | None = Field(
        None, description="What the weak branch of guidance knows."
    )
    label: int | None = Field(None, ge=0, le=65_535, description="The global label, of models that have labels.")
    reuse: ReuseBody | None = Field(None, description="Reuse of inner blocks from step to step.")


class JobBody(Drawn):
    """One job. What is sampled is named, what is given is passed, everything else is ignored."""

    verb: Verb = Field("sample", description="sample, chain (samples fed back), interpolate (two ends), or score.")
    model: str | None = Field(None, max_length=100, description="A loaded model; the first one if absent.")
    names: list[Name] = Field(
        default_factory=list, max_length=64, description="What is sampled; of a chain its links, in order."
    )
    given: dict[Name, Value] = Field(
        default_factory=dict,
        max_length=32,
        description="Modality -> a sentence, a data URL, or numbers; of an interpolation the first end.",
    )
    second: dict[Name, Value] = Field(default_factory=dict, max_length=32, description="The second end.")
    n: int = Field(1, ge=1, le=MAX_N, description="How many samples.")
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Width and height of the pictures, of models that make more than one size."
    )
    looseness: dict[Name, Timestep] = Field(
        default_factory=dict,
        max_length=32,
        description="Given modality -> the timestep it is held at; sampled and given -> where its sample starts.",
    )
    masks: dict[Name, Value] = Field(
        default_factory=dict, max_length=32, description="Modality given in part -> a picture, white where it is made."
    )
    path: dict[Name, Annotated[list[Timestep], Field(min_length=2, max_length=1001)]] = Field(
        default_factory=dict, max_length=32, description="Sampled modality -> its own steps + 1 falling timesteps."
    )
    frames: int = Field(8, ge=2, le=32, description="Of an interpolation.")
    of: Name | None = Field(None, description="Of a score: what is explained; the first given modality if absent.")
    draws: int = Field(64, ge=2, le=1024, description="Of a score: noise draws.")
    previews: bool = Field(False, description="Whether events carry what the samples look like on the way.")
    partials: int = Field(0, ge=0, le=16, description="So many previews evenly spread over the steps, however fast.")
    deadline_s: float | None = Field(None, gt=0, le=86_400, allow_inf_nan=False, description="Give up after so long.")

    @model_validator(mode="after")
    def _whole(self) -> "JobBody":
        if self.verb != "score" and not self.names:
            raise ValueError(f"nothing to {self.verb}: name at least one modality in 'names'")
        if len(set(self.names)) < len(self.names) and self.verb != "chain":
            raise ValueError("a modality is named twice in 'names'; name each once")
        if self.verb == "interpolate" and not self.second:
            raise ValueError("an interpolation needs its other end in 'second'")
        for name, value in self.plain.items():
            if name not in TAKEN[self.verb] and value != _DEFAULTS[name]:
                raise ValueError(f"{name!r} means nothing for the verb {self.verb!r}; leave it out")
        return self

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.model_dump(mode="json")


_ALWAYS = {"verb", "model", "given", "seed", "deadline_s"}
_DRAWN = _ALWAYS | set(Drawn.model_fields) | {"names", "n", "size"}
TAKEN: dict[Verb, set[str]] = {
    "sample": _DRAWN | {"looseness", "masks", "path", "previews", "partials"},
    "chain": _DRAWN,
    "interpolate": _ALWAYS | {"names", "second", "frames", "steps"},
    "score": _ALWAYS | {"of", "draws"},
}
"""What a verb takes; whatever else is sent with it is refused."""
_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in JobBody.model_fields.items()}


class PictureBody(Strict):
    """A picture that may carry a recipe."""

    image: str = Field(min_length=1, description="A data URL.")


class ErrorDetail(BaseModel):
    """What went wrong, in the form of the OpenAI API."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


class JobAnswer(BaseModel):
    """A job as it stands."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "expired", "interrupted"]
    verb: Verb
    model: str
    job: dict[str, Any]
    cost: int
    created: float
    started: float | None
    finished: float | None
    error: str | None
    result: dict[str, Any] | None
    ahead: int | None = None


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobAnswer]


class Status(BaseModel):
    """The server at a glance."""

    version: str
    ready: bool
    trouble: str
    models: list[dict[str, Any]]
    queue: dict[str, int]
    limits: dict[str, int]

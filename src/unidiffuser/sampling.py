"""Sampling: roles -> timesteps -> guided Denoiser -> solver.

Which distribution is sampled is only a matter of timesteps: those of the sampled modalities run from 1 down to `end`
along a grid (or a path of their own), those of the held ones stay. A given modality held at t = 0 is clean; held at
0 < t < 1 it is noised once, and the sample is a true draw of p(x | y_t). An ignored one is noise at t = 1.

A sampled modality may start near a value instead of from noise: the value noised to a timestep below 1, from where it
runs down to 0 (SDEdit, Meng et al. 2022). The later it starts, the nearer it stays.

A sampled modality may be known in part (infilling): before every step the known part is replaced by its noised truth,
and `resample` more rounds of noising back and stepping again let the rest come to agree with it (RePaint, Lugmayr et
al. 2022). Replacement alone does not draw from the conditional law; the rounds bring it close (docs/sampling.md).

All noise of sample k comes from seeds[k] alone, so a sample is the same in any batch. This file knows nothing of raw
data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from unidiffuser.denoiser import Denoiser
from unidiffuser.guidance import Guidance, guided
from unidiffuser.joint import Joint, Shapes, check_seeds, modalities_of, modality_of, noise_like
from unidiffuser.process import Process
from unidiffuser.solvers import SOLVERS, Flow, Levels, Solver, integrate
from unidiffuser.timesteps import Roles

Known = Mapping[str, tuple[Tensor, Tensor]]
"""Stream of a sampled modality -> (clean values (B, ...), mask that broadcasts to it, True = known)."""

MAX_STEPS, MAX_RESAMPLE = 1000, 100
NEAREST_END = 1e-3
"""The grid in log-SNR, which is infinite at the ends, is laid out between this timestep and 1 minus it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a callback sees after each step."""

    index: int
    """The step that was just taken, from 0."""
    steps: int
    """How many there are."""
    timesteps: Mapping[str, float]
    """Modality -> the timestep it has reached."""
    x0: Joint
    """The clean estimates of the sampled streams that the step was taken with."""


def _uniform(process: Process, u: Tensor, start: float, end: float) -> Tensor:
    return start + (end - start) * u


def _quadratic(process: Process, u: Tensor, start: float, end: float) -> Tensor:
    return end + (start - end) * (1.0 - u).square()


def _log_snr(process: Process, u: Tensor, start: float, end: float) -> Tensor:
    inner = torch.tensor([min(start, 1.0 - NEAREST_END), max(end, NEAREST_END)], dtype=torch.float64)
    first, last = process.log_snr(inner)
    return process.t_of_log_snr(torch.lerp(first, last, u))


GRIDS: dict[str, Callable[[Process, Tensor, float, float], Tensor]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
}
"""Every grid by name: (process, u from 0 to 1, start, end) -> timesteps. Quadratic lies denser towards the data."""


def time_grid(process: Process, steps: int, grid: str = "uniform", start: float = 1.0, end: float = 0.0) -> Tensor:
    """The nodes t_0 = start > ... > t_steps = end, both exact: (steps + 1,), float64.

    Raises:
        ValueError: an unknown grid, steps out of range, or not 0 <= end < start <= 1.
    """
    _check_count("steps", steps, 1, MAX_STEPS)
    if grid not in GRIDS:
        raise ValueError(f"there is no grid {grid!r}; choose one of {', '.join(GRIDS)}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"a grid runs from a start down to an end with 0 <= end < start <= 1, not {start} to {end}")
    t = GRIDS[grid](process, torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64), start, end)
    t[0], t[-1] = start, end
    return t


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    roles: Roles,
    seeds: Sequence[int],
    *,
    given: Joint | None = None,
    known: Known | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    empty: Joint | None = None,
    solver: str = "dpmpp_2m",
    steps: int = 25,
    grid: str = "uniform",
    begin: float = 1.0,
    end: float = 0.0,
    path: Mapping[str, Sequence[float]] | None = None,
    origin: Joint | None = None,
    near: Mapping[str, float] | None = None,
    start: Joint | None = None,
    fresh_noise: bool = False,
    resample: int = 4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[Step], None] | None = None,
) -> Joint:
    """Draw B samples of the sampled modalities, given the given ones.

    Args:
        denoiser: the model.
        process: its noising process.
        shapes: every stream of the model -> shape of one sample.
        roles: who is sampled, and at which timestep the others are held.
        seeds: one a sample, B of them.
        given: the clean streams, (B, ...), of every modality held at t < 1. Those of one held at 1 have no influence.
        known: parts of sampled streams that are known; they come back exactly.
        guidance: see `guidance.Guidance`.
        empty: the empty values for guidance against "empty", (1, ...) or (B, ...).
        solver: a name in `solvers.SOLVERS`.
        steps: number of steps, 1 to 1000.
        grid: a name in `GRIDS`.
        begin: the timestep of the start, which is noise alone; below 1 it is sigma(begin) eps, what a student expects.
        end: the timestep at which sampling stops; at 0 the result is the last clean estimate.
        path: sampled modality -> its own steps + 1 timesteps from `begin` (or `near`) down to `end`; the grid where
            absent. Image first and then text is {"image": [1, ..., 0, 0, ..., 0], "text": [1, 1, ..., 1, ..., 0]}.
        origin: the clean streams, (B, ...), of the sampled modalities in `near`.
        near: sampled modality -> the timestep, above `end`, to which its origin is noised and at which it starts.
        start: noise (B, ...) to start all sampled streams from, instead of the seeds' own.
        fresh_noise: draw the noise of ignored modalities anew at each evaluation, and guide where only that noise can
            make a difference, as the released sampler does.
        resample: extra rounds a step where something is known in part, 0 to 100; each costs as much as the step.
        device: where to compute; noise is drawn on the CPU.
        dtype: of the sampled streams.
        on_step: called after each step; it may raise to cancel.

    Returns:
        Sampled and given streams, (B, ...); the given ones are the tensors that were given.

    Raises:
        ValueError: anything that does not fit together, in one sentence.
    """
    setting = _Setting(
        denoiser=denoiser, process=process, shapes=shapes, roles=roles, seeds=seeds, given=given or {},
        guidance=guidance, empty=empty, fresh_noise=fresh_noise, device=device, dtype=dtype,
    )  # fmt: skip
    known = known or {}
    _check_known(known, setting)
    _check_count("resample", resample, 0, MAX_RESAMPLE)
    step = _solver(solver).step
    near = dict(near or {})
    _check_origin(origin or {}, near, setting)
    timesteps = {m: time_grid(process, steps, grid, near.get(m, begin), end) for m in roles.sampled}
    timesteps |= _paths(timesteps, path or {})
    flow = setting.flow(timesteps)
    x = _beginning(flow, begin, origin or {}) if start is None else setting.place("start", start)
    parts = {s: (x0.to(device, dtype), mask.to(device)) for s, (x0, mask) in known.items()}

    def amend(x: Joint, node: int, turn: int) -> Joint:
        eps = setting.noise({s: shapes[s] for s in parts}, f"known/{node}/{turn}")
        noised = {s: flow.levels[modality_of(s)].noised(x0, eps[s], node) for s, (x0, _) in parts.items()}
        return {s: torch.where(parts[s][1], noised[s], value) if s in parts else value for s, value in x.items()}

    rounds = 1 + resample if parts else 1
    for state in integrate(step, flow, x, amend=amend if parts else None, rounds=rounds):
        x = state.x
        if on_step:
            reached = {m: float(t[state.node]) for m, t in timesteps.items()} | dict(roles.held)
            on_step(Step(index=state.node - 1, steps=steps, timesteps=reached, x0=state.past[0].x0))
    found = x | {s: torch.where(mask, x0, x[s]) for s, (x0, mask) in parts.items()} | setting.given
    return {s: found[s] for s in shapes if s in found}


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    roles: Roles,
    x0: Joint,
    seeds: Sequence[int],
    *,
    given: Joint | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    empty: Joint | None = None,
    solver: str = "heun",
    steps: int = 50,
    grid: str = "uniform",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Joint:
    """The noise that `sample(start=...)` with the same roles, givens and seeds maps to x0, up to the solver's error.

    The probability-flow equation is run from data to noise; see `sample` for the arguments. With "heun" both ways and
    equal steps the way back is the closest.

    Args:
        x0: clean sampled streams, (B, ...).

    Raises:
        ValueError: a stochastic solver, or anything that does not fit together.
    """
    setting = _Setting(
        denoiser=denoiser, process=process, shapes=shapes, roles=roles, seeds=seeds, given=given or {},
        guidance=guidance, empty=empty, fresh_noise=False, device=device, dtype=dtype,
    )  # fmt: skip
    row = _solver(solver)
    if row.stochastic:
        fixed = ", ".join(name for name, other in SOLVERS.items() if not other.stochastic)
        raise ValueError(f"{solver!r} draws noise on the way and cannot be inverted; choose one of {fixed}")
    flow = setting.flow(dict.fromkeys(roles.sampled, time_grid(process, steps, grid).flip(0)))
    x = setting.place("x0", x0)
    for state in integrate(row.step, flow, x):
        x = state.x
    return x


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What is sampled with what: all that `sample` and `invert` share before the first step."""

    denoiser: Denoiser
    process: Process
    shapes: Shapes
    roles: Roles
    seeds: Sequence[int]
    given: Joint
    guidance: Guidance
    empty: Joint | None
    fresh_noise: bool
    device: torch.device | str
    dtype: torch.dtype

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if not self.seeds:
            raise ValueError("give at least one seed; there is one sample a seed")
        ours, theirs = modalities_of(self.shapes), (*self.roles.sampled, *self.roles.held)
        if sorted(ours) != sorted(theirs):
            raise ValueError(f"roles are needed for {', '.join(ours)}, not for {', '.join(theirs)}")
        # A given modality held at t = 1 says nothing, but it was given all the same.
        needed = [s for s in self.shapes if modality_of(s) in self.roles.given]
        allowed = [s for s in self.given if modality_of(s) in self.roles.ignored]
        check_streams("given", self.given, [*needed, *allowed], self.shapes, len(self.seeds))
        if self.empty:
            owners = modalities_of(self.empty)
            rows = 1 if all(len(x) == 1 for x in self.empty.values()) else len(self.seeds)
            whole = [s for s in self.shapes if modality_of(s) in owners]
            check_streams("empty", self.empty, whole, self.shapes, rows)

    @property
    def wanted(self) -> Shapes:
        """The streams that are sampled."""
        return {s: shape for s, shape in self.shapes.items() if modality_of(s) in self.roles.sampled}

    def noise(self, streams: Shapes, purpose: str) -> Joint:
        """Each sample's own noise for some streams."""
        return {s: eps.to(self.device, self.dtype) for s, eps in noise_like(streams, self.seeds, purpose).items()}

    def place(self, what: str, joint: Joint) -> Joint:
        """Sampled streams that the caller brings, checked, where they are needed."""
        check_streams(what, joint, list(self.wanted), self.shapes, len(self.seeds))
        return {s: joint[s].to(self.device, self.dtype) for s in self.wanted}

    def held(self) -> Joint:
        """The given streams at the timesteps they are held at."""
        held = {}
        for m, level in self.roles.held.items():
            streams = {s: self.shapes[s] for s in self.given if modality_of(s) == m and level < 1}
            t = torch.full((len(self.seeds),), level, dtype=torch.float64, device=self.device)
            for s, eps in (self.noise(streams, "held") if level > 0 else {}).items():
                held[s] = self.process.add_noise(self.given[s].to(eps), eps, t)
            if level == 0:
                held |= {s: self.given[s].to(self.device, self.dtype) for s in streams}
        return held

    def flow(self, timesteps: Mapping[str, Tensor]) -> Flow:
        """The way along these timesteps, (steps + 1,) for every sampled modality."""
        batch, drawn = len(self.seeds), count()
        fixed = self.noise(self.shapes, "ignored")

        def pure_noise() -> Joint:
            return self.noise(self.shapes, f"ignored/{next(drawn)}") if self.fresh_noise else fixed

        held = self.held()
        guide = guided(self.denoiser, self.roles, self.guidance, pure_noise, self.empty, literal=self.fresh_noise)
        tensors = {m: t.to(self.device, self.dtype) for m, t in timesteps.items()}
        still = {m: torch.full((batch,), t, device=self.device, dtype=self.dtype) for m, t in self.roles.held.items()}

        def evaluate(x: Joint, node: int) -> Joint:
            present = (pure_noise() if self.roles.ignored else {}) | held | x
            t = {m: tensors[m][node].expand(batch) for m in tensors} | still
            x0 = guide({s: present[s] for s in self.shapes}, {m: t[m] for m in modalities_of(self.shapes)})
            return {s: x0[s] for s in x}

        levels = {m: Levels.along(self.process, t) for m, t in timesteps.items()}
        steps = len(next(iter(timesteps.values()))) - 1
        return Flow(evaluate, levels, lambda purpose: self.noise(self.wanted, purpose), steps)


def _beginning(flow: Flow, begin: float, origin: Joint) -> Joint:
    """Noise as strong as at the first node; at t = 1 it has unit variance, even where the process ends just short.

    What has an origin starts from that, noised.
    """
    noise = flow.noise("start")
    levels = {s: flow.levels[modality_of(s)] for s in noise}
    near = {s: levels[s].noised(x0.to(noise[s]), noise[s], 0) for s, x0 in origin.items()}
    return (noise if begin == 1 else {s: levels[s].sigma[0] * eps for s, eps in noise.items()}) | near


def _check_count(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, not {value!r}")


def _solver(name: str) -> Solver:
    if name not in SOLVERS:
        raise ValueError(f"there is no solver {name!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def _paths(grids: Mapping[str, Tensor], path: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """The nodes (steps + 1,) of every sampled modality that has a path of its own."""
    timesteps = {}
    for m, values in path.items():
        if m not in grids:
            raise ValueError(f"a path is for what is sampled ({', '.join(grids)}), not for {m!r}")
        t, nodes = torch.as_tensor(values, dtype=torch.float64), grids[m]
        if t.shape != nodes.shape or t[0] != nodes[0] or t[-1] != nodes[-1] or not bool((t.diff() <= 0).all()):
            ends = f"from {nodes[0]:g} to {nodes[-1]:g}"
            raise ValueError(f"the path of {m!r} must be {len(nodes)} timesteps that fall or rest, {ends}")
        timesteps[m] = t
    return timesteps


def check_streams(what: str, joint: Joint, wanted: Sequence[str], shapes: Shapes, batch: int) -> None:
    """Raise a ValueError unless a joint holds exactly the wanted streams, of the right shapes, with finite numbers."""
    if sorted(joint) != sorted(wanted):
        needed, found = ", ".join(wanted) or "none", ", ".join(joint) or "none"
        raise ValueError(f"{what} must hold the streams {needed}, not {found}")
    for stream, x in joint.items():
        shape = (batch, *shapes[stream])
        if tuple(x.shape) != shape:
            raise ValueError(f"{what} {stream!r} must have the shape {shape}, not {tuple(x.shape)}")
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(f"{what} {stream!r} must hold finite floating-point numbers")


def _check_origin(origin: Joint, near: Mapping[str, float], setting: _Setting) -> None:
    for m, t in near.items():
        if m not in setting.roles.sampled:
            raise ValueError(
                f"only what is sampled ({', '.join(setting.roles.sampled)}) can begin near a value, not {m!r}"
            )
        if not 0 < t <= 1:
            raise ValueError(f"{m!r} must begin at a timestep above 0 and at most 1, not {t}")
    wanted = [s for s in setting.shapes if modality_of(s) in near]
    check_streams("the origin", origin, wanted, setting.shapes, len(setting.seeds))


def _check_known(known: Known, setting: _Setting) -> None:
    for stream, (x0, mask) in known.items():
        if stream not in setting.wanted:
            raise ValueError(f"known {stream!r} is not a sampled stream; those are {', '.join(setting.wanted)}")
        check_streams("known", {stream: x0}, [stream], setting.shapes, len(setting.seeds))
        shape = tuple(mask.shape)
        sizes = zip(shape[::-1], x0.shape[::-1], strict=False)
        if mask.dtype != torch.bool or mask.ndim > x0.ndim or any(m not in (1, size) for m, size in sizes):
            raise ValueError(
                f"the mask of {stream!r} must be boolean and fit {tuple(x0.shape)}, not {mask.dtype} of shape {shape}"
            )

"""UniDiffuser: raw data in, raw data out.

    model = UniDiffuser.from_pretrained("scenes")
    model.sample("image", text="a red circle above a blue square")     # p(image | text)
    model.sample("text", image=photo)                                  # p(text | image)
    model.sample("image", "text", n=16)                                # p(image, text)

What is sampled is named, what is given is passed, everything else is ignored. A modality is given in part by both: its
name, and a value with a hole (`masks={"image": mask}`, or "___" in a sentence). And it is varied by both and a
looseness: the sample starts from the value noised to that timestep.

Sample k of a call with seed s has the seed s + k and is the same in any batch. This file knows no solver, no timestep
and no file format: it turns raw values into streams, hands them to `sampling`, and turns the result back.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from unidiffuser import chains, sampling
from unidiffuser.agreement import pointwise_information
from unidiffuser.answers import Glimpse, OnStep, Progress, Sample, Score, counting, following, links_counted, watched
from unidiffuser.checkpoints import Parts, Settings, box, native
from unidiffuser.codecs import Codecs, Known, Latent
from unidiffuser.denoiser import Denoiser, NetworkDenoiser
from unidiffuser.guidance import Guidance
from unidiffuser.joint import Joint, batch_size, modality_of, seeds_from
from unidiffuser.lora import Additions, merge
from unidiffuser.modalities import NAME, Modality
from unidiffuser.networks import Network
from unidiffuser.offload import Offloaded, Weights
from unidiffuser.process import PROCESSES, Prediction
from unidiffuser.reuse import Reuse, ReusingDenoiser
from unidiffuser.timesteps import Roles, assign_roles

log = logging.getLogger(__name__)

MAX_SAMPLES = 10_000
MAX_STEPS = 1000
RESERVED = {
    "n", "seed", "steps", "solver", "grid", "guidance", "label", "reuse", "size", "looseness", "masks", "path",
    "batch", "on_step", "on_link", "watch",
}  # fmt: skip

Scale = Guidance | float | Mapping[str, float]


class UniDiffuser:
    """A network, a noising process and a codec for every modality."""

    def __init__(
        self,
        network: Network,
        process: str,
        prediction: Prediction,
        modalities: Mapping[str, Modality[Any]],
        *,
        settings: Settings | None = None,
        critic: Network | None = None,
        name: str = "unnamed",
        training: Mapping[str, Any] | None = None,
        card: str = "",
        digest: str = "",
        weights: Weights | None = None,
        critic_weights: Weights | None = None,
    ) -> None:
        """
        Args:
            network: its streams are those of the modalities.
            process: a row of `process.PROCESSES`.
            prediction: what the network's outputs stand for.
            modalities: name -> codec; a name is a keyword of `sample` and a flag of the command line.
            settings: how to sample unless told otherwise.
            critic: of a student, whose network answers with samples: a network of its law that answers with means.
            name, training, card: what the model says of itself.
            digest: the sha256 of the files it came from.
            weights, critic_weights: where their weights come from, if they are asleep (`offload`).

        Raises:
            ValueError: an impossible name, an unknown process, or streams that do not fit the network.
        """
        for modality in modalities:
            if not NAME.fullmatch(modality) or modality in RESERVED:
                raise ValueError(
                    f"a modality cannot be called {modality!r}; use small letters, digits and _, no option of sample()"
                )
        if process not in PROCESSES:
            raise ValueError(f"there is no process {process!r}; there are {', '.join(PROCESSES)}")
        self.name, self.prediction, self.digest = name, prediction, digest
        self.codecs = Codecs(modalities)
        self.part = Offloaded(network.requires_grad_(False).eval(), weights)
        self.critic_part = None if critic is None else Offloaded(critic.requires_grad_(False).eval(), critic_weights)
        self._other: Callable[[Settings], Denoiser] | None = None
        self.process_name, self.process = process, PROCESSES[process]()
        self.settings = settings or Settings()
        self.training, self.card = dict(training or {}), card
        expected = {s: tuple(shape) for s, shape in network.config.streams.items()}
        if self.shapes != expected:
            raise ValueError(f"the modalities have the streams {self.shapes}, but the network was made for {expected}")

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        low_memory: bool = False,
        download: bool = False,
    ) -> Self:
        """A saved model: the name of one in the box, a folder, or a repository of the Hugging Face hub ("owner/name").

        Args:
            device, dtype, low_memory: as for `to`.
            download: whether a repository may be fetched; else only the hub's local cache is looked at.

        Raises:
            ModelError: it is missing, damaged, foreign or from a newer version.
            ValueError: there is no such device.
        """
        loaded = cls.from_parts(native.read(box.find(model, download=download))).to(
            device, dtype, low_memory=low_memory
        )
        if not low_memory:
            loaded.part.wake()
        return loaded

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        """The model of what a checkpoint holds."""
        return cls(
            parts.network,
            parts.process,
            parts.prediction,
            parts.modalities,
            settings=parts.settings,
            critic=parts.critic,
            name=parts.name,
            training=parts.training,
            card=parts.card,
            digest=parts.digest,
            weights=parts.weights,
            critic_weights=parts.critic_weights,
        )

    def save(self, folder: str | Path, *, stored: native.Stored = "float32", force: bool = False) -> None:
        """Write the model to a folder, all or nothing; see `checkpoints.native.write`."""
        for part in self._networks():
            part.check_whole()
        parts = Parts(
            name=self.name,
            network=self.part.module,
            weights=self.part.weights,
            process=self.process_name,
            prediction=self.prediction,
            modalities=self.modalities,
            settings=self.settings,
            critic=None if self.critic_part is None else self.critic_part.module,
            critic_weights=None if self.critic_part is None else self.critic_part.weights,
            training=self.training,
            card=self.card,
        )
        native.write(folder, parts, stored=stored, force=force)

    def add(self, additions: Additions, strength: float = 1.0, *, base: str = "") -> None:
        """Merge low-rank additions into the network; the model's hash then names what it has become.

        Args:
            strength: how many times they are added.
            base: the sha256 of the model that they were trained on; another one is warned of.

        Raises:
            ValueError: they are for a model of another shape, or the network's weights are not kept in memory or in
                int8.
        """
        if not math.isfinite(strength):
            raise ValueError(f"the strength of an adapter must be a finite number, not {strength}")
        if base and self.digest and base != self.digest:
            log.warning("the adapter was trained on the model %s, not on this one, %s", base[:10], self.digest[:10])
        merge(self.part.settle(), additions, strength)
        parts = [self.digest, repr((strength, additions.scale)), *(repr(pair) for pair in additions.sums())]
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32, *, low_memory: bool = False) -> Self:
        """Where and how the large parts work: the network, and encoders and decoders that are networks.

        Args:
            device: "cpu", "cuda", "mps".
            dtype: of their weights and arithmetic; what is sampled stays in float32. With torch.int8 the layers of the
                network's blocks have 8-bit weights and inputs (`int8`, CPU only), and all else is in bfloat16.
            low_memory: load each part when it is needed and drop it after; needs a model that came from a file.

        Raises:
            ValueError: there is no such device, or it has no int8.
        """
        rest = torch.bfloat16 if dtype is torch.int8 else dtype
        for part in self._networks():
            rounded = part.module.block_layers() if dtype is torch.int8 else ()
            part.place(device, rest, keep=not low_memory, rounded=rounded)
        for codec in self.modalities.values():
            codec.to(device, rest, keep=not low_memory)
        return self

    def _networks(self) -> list[Offloaded[Network]]:
        """The network, and a student's critic."""
        return [part for part in (self.part, self.critic_part) if part is not None]

    def resized(self, width: int, height: int) -> Self:
        """The same model, with the same parts in memory, for pictures of another size in pixels.

        Raises:
            ValueError: it makes no pictures, or none of this size.
        """
        pictures = [name for name, codec in self.modalities.items() if codec.media_type == "image"]
        if not pictures:
            raise ValueError(f"this model makes no pictures, only {', '.join(self.modalities)}; leave the size out")
        other = copy(self)
        resized = {name: self.modalities[name].resized(width, height) for name in pictures}
        other.codecs = Codecs(self.modalities | resized)
        return other

    @property
    def network(self) -> Network:
        """The network, its weights in memory."""
        return self.part.wake()

    @property
    def critic(self) -> Network | None:
        """A student's critic, its weights in memory."""
        return None if self.critic_part is None else self.critic_part.wake()

    @property
    def modalities(self) -> dict[str, Modality[Any]]:
        """Name -> codec."""
        return self.codecs.modalities

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Stream -> shape of one sample."""
        return self.codecs.shapes

    @property
    def device(self) -> torch.device:
        """Where the network works."""
        return self.part.device

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers; see `to`."""
        return torch.int8 if self.part.rounded else self.part.dtype

    @property
    def labels(self) -> int:
        """How many global labels the network has; 0: none."""
        return int(vars(self.part.module.config).get("labels", 0))

    @property
    def denoiser(self) -> Denoiser:
        """What is asked for clean estimates: the network with the model's own label, or what `through` put there.

        A student's answers with samples, not with means.
        """
        return self.denoiser_for(self.settings)

    def through(self, make: Callable[[Settings], Denoiser]) -> Self:
        """The same model, weights and all, that asks other Denoisers, such as are shared, counted or watched.

        Args:
            make: the Denoiser for one run of a solver with these settings. It stands for the posterior as well: a
                student's samples and its scores want one each.
        """
        other = copy(self)
        other._other = make
        return other

    def denoiser_for(self, settings: Settings, wanted: Collection[str] | None = None) -> Denoiser:
        """The Denoiser for one run of a solver; `wanted` are the streams that anybody asks for.

        Raises:
            ValueError: the settings want reuse, and this network cannot.
        """
        if self._other is not None:
            return self._other(settings)
        network = self.part.wake()
        if settings.reuse is not None:
            return ReusingDenoiser(settings.reuse, network, self.process, self.prediction, settings.label, wanted)
        return NetworkDenoiser(network, self.process, self.prediction, settings.label, wanted)

    @property
    def posterior(self) -> Denoiser:
        """E[x0 | x_t] under the law of the samples: the network, or a student's critic."""
        return self.posterior_for(self.settings)

    def posterior_for(self, settings: Settings) -> Denoiser:
        """`posterior` with these settings."""
        if self._other is not None:
            return self._other(settings)
        network = (self.critic_part or self.part).wake()
        return NetworkDenoiser(network, self.process, self.prediction, settings.label)

    def sample(
        self,
        *names: str,
        n: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        solver: str | None = None,
        guidance: Scale | None = None,
        label: int | None = None,
        reuse: Reuse | None = None,
        size: tuple[int, int] | None = None,
        looseness: Mapping[str, float] | None = None,
        masks: Mapping[str, Any] | None = None,
        path: Mapping[str, Sequence[float]] | None = None,
        batch: int = 16,
        on_step: Progress | None = None,
        watch: Callable[[Glimpse], None] | None = None,
        **given: Any,
    ) -> list[Sample]:
        """Draw samples of the named modalities given the values of others; all else is ignored.

        Args:
            names: the modalities to sample.
            n: how many samples, 1 to 10,000.
            seed: of the first sample; sample k has seed + k. Or a list of n seeds. Random if absent.
            steps: solver steps, 1 to 1000. solver: a row of `solvers.SOLVERS`. Absent: as the model's settings say.
            guidance: a scale (0 = off), a scale per modality, or a whole `Guidance`.
            label: the global label, for models that have one.
            reuse: take the output of the inner blocks from earlier evaluations: faster, and not exact (`reuse`).
            size: (width, height) of the pictures in pixels, for models that can make more than one.
            looseness: given modality -> the timestep it is held at; 0 (absent) exactly, 1 not at all. Of one that is
                both sampled and given: the timestep its sample starts from, above 0; the lower, the nearer it stays.
            masks: modality that is both sampled and given -> where it is to be made (see its codec's `mask`).
            path: sampled modality -> its own steps + 1 timesteps; see `sampling.sample`.
            batch: samples drawn at a time; no effect on them.
            on_step: progress.
            watch: called with a `Glimpse` after every step; it may raise to cancel.
            given: modality -> one raw value for all samples, or a list of n. A value that was sampled may be given by
                its latents (`Sample.latent`).

        Returns:
            n samples with the raw values of what was sampled and given.

        Raises:
            ValueError: what is asked for makes no sense; the sentence says what would.
        """
        n = _whole("n", n, 1, MAX_SAMPLES)
        batch = _whole("batch", batch, 1, MAX_SAMPLES)
        seeds = seeds_from(seed, n)
        model = self if size is None else self.resized(*size)
        looseness = dict(looseness or {})
        near = {name: float(looseness.pop(name)) for name in names if name in given and name in looseness}
        if both := [name for name in near if name in (masks or {})]:
            raise ValueError(f"{both[0]!r} has a mask and a looseness; give one of the two")
        origin = model.codecs.whole(n, {name: given.pop(name) for name in near})
        values, known = model.codecs.given(names, n, given, masks or {}, seeds)
        roles = assign_roles(self.modalities, names, values, looseness)
        settings = self.choose(steps, solver, guidance, label, reuse)
        plan = _Plan(
            roles=roles, settings=settings, given=values, known=known, origin=origin, near=near, path=dict(path or {})
        )
        samples: list[Sample] = []
        for start in range(0, n, batch):
            rows = slice(start, min(start + batch, n))
            done, total = start // batch, -(-n // batch)
            counted = counting(on_step, settings.steps, done, total)
            follow = following(counted, watch and watched(watch, range(rows.start, rows.stop), model.decode))
            joint = model._draw(plan, seeds[rows], rows, follow)
            samples += model._samples(plan, joint, seeds[rows], rows)
        return samples

    def choose(
        self,
        steps: int | None = None,
        solver: str | None = None,
        guidance: Scale | None = None,
        label: int | None = None,
        reuse: Reuse | None = None,
    ) -> Settings:
        """The model's settings with what the user chose; a guidance scale alone keeps the rest of the model's own."""
        own = self.settings
        if guidance is None:
            guidance = own.guidance
        elif not isinstance(guidance, Guidance):
            for scale in guidance.values() if isinstance(guidance, Mapping) else [guidance]:
                if isinstance(scale, bool) or not isinstance(scale, int | float):
                    raise ValueError(f"a guidance scale must be a number, not {scale!r}")
            guidance = replace(own.guidance, scale=guidance)
        self.codecs.check_names(guidance.scale if isinstance(guidance.scale, Mapping) else ())
        steps = _whole("steps", own.steps if steps is None else steps, 1, MAX_STEPS)
        label = _whole("label", own.label if label is None else label, 0, max(self.labels - 1, 0))
        solver = own.solver if solver is None else solver
        return replace(own, steps=steps, solver=solver, guidance=guidance, label=label, reuse=reuse or own.reuse)

    def chain(
        self,
        *names: str,
        n: int = 1,
        seed: int | None = None,
        on_step: Progress | None = None,
        on_link: Callable[[int, list[Sample]], None] | None = None,
        **options: Any,
    ) -> list[list[Sample]]:
        """Samples fed back as givens: names[0] is given, or sampled alone; each next is sampled given the one before.

            model.chain("text", "image", "text", "image", text="a red circle")      # blocked Gibbs sampling

        Args:
            names: the links, at least two; neighbours differ.
            n: how many chains.
            seed: of the first chain; chain k has seed + k. Every link has a seed of its own made from it.
            on_step: progress.
            on_link: called with (link, its n samples) as soon as a link is drawn.
            options: as for `sample`; what else is given stays given at every link.

        Returns:
            n chains; every link is a sample that holds what was sampled and what it was sampled from. Where a codec is
            lossy a link is given the latents that the one before drew, not their decoding.

        Raises:
            ValueError: as for `sample`, or a sampled value that cannot be given, such as an empty sentence.
        """
        self.codecs.check_names(names)
        chains.relay(names)  # raises unless the names make a chain
        seeds = seeds_from(seed, _whole("n", n, 1, MAX_SAMPLES))
        rest = {name: value for name, value in options.items() if name != names[0]}
        value = options.get(names[0])
        # A start that is not given is a link of its own, sampled from nothing.
        befores = names if value is not None else (None, *names)
        links: list[list[Sample]] = []
        for before, name in pairwise(befores):
            counted = links_counted(on_step, len(links), len(befores) - 1)
            given = rest if before is None else rest | {before: value}
            assert name is not None
            link_seeds = chains.link_seeds(seeds, len(links))
            links.append(self.sample(name, n=n, seed=link_seeds, on_step=counted, **given))
            lossy = self.modalities[name].lossy
            value = [sample.latent(name) if lossy else sample[name] for sample in links[-1]]
            if on_link:
                on_link(len(links) - 1, links[-1])
        return [list(chain) for chain in zip(*links, strict=True)]

    def interpolate(
        self,
        first: Mapping[str, Any],
        second: Mapping[str, Any],
        *of: str,
        frames: int = 8,
        seed: int = 0,
        steps: int = 50,
    ) -> list[Sample]:
        """The way from one picture, sentence or pair to another, by inversion; see `chains.interpolate`.

        Args:
            first, second: modality -> raw value, of both ends.
            of: the modalities to go between; all that the ends hold if none is named. What else the ends hold is given.
            frames: how many samples, both ends among them, 2 to 1000.
            seed: matters only for what is ignored.
            steps: of the inversion, and as many back.

        Returns:
            One sample a frame. The ends come back up to the solver's error.
        """
        frames = _whole("frames", frames, 2, MAX_STEPS)
        a, b = ({s: x.to(self.device) for s, x in self.encode(**end).items()} for end in (first, second))
        fractions = [k / (frames - 1) for k in range(frames)]
        with (self.critic_part or self.part).loaded():
            joints = list(
                chains.interpolate(
                    self.posterior,
                    self.process,
                    self.shapes,
                    a,
                    b,
                    of or tuple(first),
                    fractions,
                    seeds_from(seed, 1),
                    steps=_whole("steps", steps, 1, MAX_STEPS),
                    device=self.device,
                )
            )
        values = [{name: raws[0] for name, raws in self.decode(joint).items()} for joint in joints]
        return [Sample(seed, value) for value in values]

    def score(
        self, of: str, about: str, *, samples: int = 64, seed: int = 0, batch: int = 64, **given: Any
    ) -> list[Score]:
        """How many bits one given modality tells about another, by the model's own belief; see `agreement`.

        Args:
            of: the modality that is explained.
            about: the one that explains it.
            samples: noise draws, 2 or more; the error falls with their root.
            seed: of the first pair.
            batch: noise draws in one forward; it changes no draw.
            given: both modalities, each one raw value or a list of B.

        Returns:
            One score a pair.
        """
        self.codecs.check_names((of, about))
        joint = {s: x.to(self.device) for s, x in self.encode(**given).items()}
        seeds = seeds_from(seed, batch_size(joint))
        with (self.critic_part or self.part).loaded():
            found = pointwise_information(
                self.posterior, self.process, self.shapes, joint, of, about, seeds, samples=samples, batch=batch
            )
        # A grid's channels are no places: their bits are added up. So are those of the numbers of a token.
        maps = {s: bits.sum(1 if bits.ndim == 4 else -1).cpu().numpy() for s, bits in found.maps.items()}
        return [
            Score(float(found.bits[k]), float(found.error[k]), {s: bits[k] for s, bits in maps.items()})
            for k in range(len(seeds))
        ]

    def encode(self, **values: Any) -> Joint:
        """Raw values, each one or a list of B, as streams: stream -> (B, ...), on the CPU."""
        return self.codecs.encode(
            {name: value if isinstance(value, list) else [value] for name, value in values.items()}
        )

    def decode(self, joint: Joint) -> dict[str, list[Any]]:
        """Streams as raw values: modality -> B values."""
        return self.codecs.decode(joint)

    @torch.inference_mode()
    def predict_noise(self, joint: Joint, timesteps: Mapping[str, Tensor | float], label: int | None = None) -> Joint:
        """The noise the network sees in a noisy joint, whatever its outputs stand for.

        Args:
            joint: every stream of the model -> (B, ...).
            timesteps: modality -> one timestep in [0, 1], or (B,).
            label: the global label, for models that have one; their own if absent.

        Returns:
            stream -> (B, ...), float32: the outputs of a network that predicts noise, as they are; of any other, and of
            a Denoiser that `through` put there, (x_t - alpha x0) / sigma of the clean estimate x0, which is 0 at t = 0.
        """
        batch = batch_size(joint)
        sampling.check_streams("the joint", joint, list(self.shapes), self.shapes, batch)
        xt = {stream: joint[stream].to(self.device, torch.float32) for stream in self.shapes}
        t = self._checked_timesteps(batch, timesteps)
        part = self.critic_part or self.part
        with part.loaded():
            denoiser = self.posterior_for(self.choose(label=label))
            if self._other is None and self.prediction == "eps":
                # Not by way of x0: where sigma is 0 it knows nothing of the noise.
                assert isinstance(denoiser, NetworkDenoiser)
                output = denoiser.predict(xt, t, denoiser.label_for(xt))
                return {s: output[s].float() for s in xt}
            x0 = denoiser(xt, t)
        return {s: self.process.eps_from_x0(x0[s], x, t[modality_of(s)]) for s, x in xt.items()}

    def _draw(self, plan: "_Plan", seeds: Sequence[int], rows: slice, on_step: OnStep | None) -> Joint:
        """The streams of one batch."""
        given = self.codecs.encode({name: raws[rows] for name, raws in plan.given.items()}, seeds)
        origin = self.codecs.encode({name: raws[rows] for name, raws in plan.origin.items()}, seeds)
        known = {stream: (x[rows], mask[rows]) for stream, (x, mask) in plan.known.items()}
        settings = plan.settings
        against_empty = settings.guidance.against == "empty"
        empty = self.codecs.empty(plan.roles.given) if against_empty else None
        wanted = [stream for stream in self.shapes if modality_of(stream) in plan.roles.sampled]
        with torch.inference_mode(), self.part.loaded():
            return sampling.sample(
                self.denoiser_for(settings, wanted),
                self.process,
                self.shapes,
                plan.roles,
                seeds,
                given=given,
                known=known,
                guidance=settings.guidance,
                empty=empty,
                solver=settings.solver,
                steps=settings.steps,
                grid=settings.grid,
                begin=settings.begin,
                end=settings.end,
                path=plan.path,
                origin=origin,
                near=plan.near,
                fresh_noise=settings.fresh_noise,
                device=self.device,
                on_step=on_step,
            )

    def _samples(self, plan: "_Plan", joint: Joint, seeds: list[int], rows: slice) -> list[Sample]:
        """Raw values of one batch: what was given as it was given, what was sampled decoded."""
        values = {
            name: [raw.raw if isinstance(raw, Latent) else raw for raw in raws[rows]]
            for name, raws in plan.given.items()
        }
        sampled = {s: x for s, x in joint.items() if modality_of(s) in plan.roles.sampled}
        values |= self.codecs.decode(sampled, seeds)
        order = [name for name in self.modalities if name in values]
        streams = {s: x.cpu() for s, x in joint.items()}
        return [
            Sample(seed, {name: values[name][k] for name in order}, {s: x[k] for s, x in streams.items()})
            for k, seed in enumerate(seeds)
        ]

    def _checked_timesteps(self, batch: int, timesteps: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        if set(timesteps) != set(self.modalities):
            names = ", ".join(timesteps) or "none"
            raise ValueError(f"there must be timesteps for {', '.join(self.modalities)}, not for {names}")
        result = {}
        for name, value in timesteps.items():
            t = torch.as_tensor(value, dtype=torch.float32, device=self.device)
            if t.ndim > 1 or (t.ndim == 1 and len(t) != batch) or not bool(((t >= 0) & (t <= 1)).all()):
                raise ValueError(f"the timesteps of {name!r} must be one number or {batch}, each from 0 to 1")
            result[name] = t.expand(batch)
        return result


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One call of `sample`, checked and complete."""

    roles: Roles
    settings: Settings
    given: Mapping[str, list[Any]]
    known: Known
    origin: Mapping[str, list[Any]]
    near: Mapping[str, float]
    path: Mapping[str, Sequence[float]]


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value

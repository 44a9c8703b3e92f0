"""Memory and time of a run before anything is spent, from the network itself on no memory ("meta" tensors).

    weights         4 bytes a parameter; gradients, two moments, E averages: 4 (3 + E) more for each that is trained;
                    shared out under fsdp
    activations     what autograd would keep of one part of a batch, added up tensor by tensor
    time            the operations of a step, counted, over the rate of bfloat16 products measured here

The time assumes that a whole step reaches the share `EFFICIENCY` of the rate of large products: an order of magnitude.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from unidiffuser import lora
from unidiffuser.checkpoints import box, native
from unidiffuser.joint import Joint, modalities_of
from unidiffuser.networks import Network, build
from unidiffuser.training import warm
from unidiffuser.training.preset import Preset

EFFICIENCY = 0.45
"""The share of the products' rate that a whole step is taken to reach; an assumption."""
PRODUCT = 1024
"""Side of the matrices whose product is timed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take."""

    parameters: int
    trained: int
    """So many of them: fewer than all with low-rank additions, which are counted among them."""
    tokens: int
    state_bytes: int
    """Weights, gradients, moments and averages, a process."""
    activation_bytes: int
    """Of one part of a step's batch, a process."""
    operations: float
    """Multiply-adds times two of a step, over all processes."""
    seconds: float
    """Of a step, on this machine's device."""

    def lines(self, preset: Preset) -> list[str]:
        """For a person."""
        hours = self.seconds * preset.training.steps / 3600
        trained = f"{self.trained / 1e6:.2f} million of them trained, " if self.trained < self.parameters else ""
        return [
            f"parameters     {self.parameters / 1e6:.1f} million, {trained}{self.tokens} tokens a sample",
            f"memory         {(self.state_bytes + self.activation_bytes) / 2**30:.2f} GiB a process: "
            f"{self.state_bytes / 2**30:.2f} for weights, moments and averages, "
            f"{self.activation_bytes / 2**30:.2f} for activations",
            f"a step         {self.operations / 1e12:.3f} TFLOP, about {self.seconds:.2g} s here",
            f"the run        {preset.training.steps} steps, about {hours:.2g} hours here",
        ]


def estimate(
    preset: Preset, streams: Mapping[str, tuple[int, ...]], *, processes: int = 1, device: str = "cpu"
) -> Estimate:
    """Estimate a run.

    Args:
        streams: stream -> shape of one sample, as the codecs make them.
        processes: how many share a step's batch.
        device: whose rate is measured.
    """
    settings = preset.training
    network = _network(preset, {**preset.network, "streams": dict(streams)})
    rows = max(settings.batch // (settings.accumulate * processes), 1)
    x: Joint = {s: torch.empty(rows, *shape, device="meta") for s, shape in streams.items()}
    t = {m: torch.empty(rows, device="meta") for m in modalities_of(streams)}
    kept: dict[int, int] = {}
    own = {id(p) for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own:
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = network(x, t)
        torch.stack([value.float().sum() for value in out.values()]).sum().backward()
    count = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    share = processes if preset.sharding == "fsdp" else 1
    kept_bytes = sum(kept.values()) // (2 if settings.autocast else 1)
    if settings.recompute:
        kept_bytes //= max(len(network.blocks()), 1)
    operations = float(counter.get_total_flops()) * settings.accumulate * processes
    if settings.recompute:
        operations *= 4 / 3
    return Estimate(
        parameters=count,
        trained=trained,
        tokens=_tokens(network),
        state_bytes=4 * (count + trained * (4 + len(settings.more_ema))) // share,
        activation_bytes=kept_bytes,
        operations=operations,
        seconds=operations / processes / (EFFICIENCY * rate_of_products(device, settings.autocast)),
    )


def _network(preset: Preset, description: dict[str, Any]) -> Network:
    """The network that a run trains, without memory."""
    if preset.start:
        description = warm.grown(native.read(box.find(preset.start)), description)
    with torch.device("meta"):
        network = build(description)
        if preset.adapter:
            lora.adapt(network, preset.adapter.rank, preset.adapter.alpha, preset.adapter.layers)
    return network


def _tokens(network: Any) -> int:
    position = dict(network.named_parameters()).get("position")
    return 1 if position is None else int(position.shape[1])


def rate_of_products(device: str, autocast: bool, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a large matrix product here."""
    dtype = torch.bfloat16 if autocast else torch.float32
    a = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    rounds, started = 0, time.monotonic()
    a @ a
    while time.monotonic() - started < seconds or not rounds:
        a @ a
        rounds += 1
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return 2 * PRODUCT**3 * rounds / (time.monotonic() - started)

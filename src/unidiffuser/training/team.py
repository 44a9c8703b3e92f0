"""The processes that train one network together, and what they must agree on.

Started by `torchrun`, every process has a rank; alone, there is one. Every process sees its own part of each step's
batch and all gradients are averaged, so that many processes take the very step that one would. The network is copied
(DistributedDataParallel) or cut into pieces (FSDP2, `fully_shard`): see `share`.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unidiffuser.networks import Network
from unidiffuser.training.preset import Sharding

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""


@dataclass(frozen=True)
class Team:
    """This process among those of a run."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """A group on the CPU for what the processes tell each other; None for one process alone."""

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks."""
        return self.rank == 0

    def agree(self, number: int) -> int:
        """The largest of the numbers that the processes hold."""
        if self.size == 1:
            return number
        x = torch.tensor(number)
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.control)
        return int(x)

    def tell(self, value: Any) -> Any:
        """What the first process holds; JSON-able values."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self.control)
        return box[0]

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Every figure, averaged over the processes."""
        if self.size == 1:
            return figures
        x = torch.tensor(list(figures.values()), dtype=torch.float64)
        dist.all_reduce(x, group=self.control)
        return dict(zip(figures, (x / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def leave(self) -> None:
        """Part with the others."""
        if self.size > 1:
            dist.destroy_process_group()


def join(device: str) -> Team:
    """The team that `torchrun` started, as its environment says; one process alone without it.

    Raises:
        ValueError: there is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    where = torch.device(device)
    if where.type == "cuda" and where.index is None and size > 1:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {device!r} cannot be used here; 'cpu' always can") from error
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size == 1:
        return Team(device=where)
    dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Team(rank=dist.get_rank(), size=dist.get_world_size(), device=where, control=control)


def share(network: Network, team: Team, sharding: Sharding) -> nn.Module:
    """The network to call in a training step: itself, a copy that averages gradients, or sharded in place."""
    if sharding == "fsdp":
        _shard(network, team)
        return network
    if team.size == 1:
        return network
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[team.device.index] if team.device.type == "cuda" else None
    )


def _shard(network: Network, team: Team) -> None:
    """FSDP2: every block's parameters are cut over the processes and gathered when it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if team.size == 1:
        return
    mesh = init_device_mesh(team.device.type, (team.size,))
    for block in network.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def quiet(module: nn.Module, last: bool) -> Any:
    """Within it, gradients of a part that is not the last of a step are kept and not yet exchanged."""
    if not last and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def local(x: Tensor) -> Tensor:
    """This process's piece of a tensor that may be sharded; it shares its memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def full(x: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all processes call it together."""
    return x.full_tensor() if isinstance(x, DTensor) else x

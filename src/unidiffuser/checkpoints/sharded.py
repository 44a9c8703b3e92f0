"""The state of a run as shards, written by many processes at once and read by any number of them.

torch.distributed.checkpoint does the work; the shards are safetensors files, so nothing in them can run. A tensor that
is sharded now may be whole, or sharded in another way, when it is read. It does not know when a checkpoint is whole:
see `training`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from unidiffuser.checkpoints.training import STATE


def fill(aside: Path, state: Mapping[str, Tensor]) -> None:
    """Write this process's shards of a state into a directory; all processes call it together.

    Raises:
        OSError: the disk refused one of the processes; all of them raise it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
            save(dict(state), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # which is no Exception, and holds what each process met
        rank, (first, _) = min(error.failures.items())
        if not isinstance(first, Exception):
            raise first from None  # somebody asked it to stop
        raise OSError(f"process {rank} cannot write its shards: {first}") from error


def load_into(folder: Path, state: Mapping[str, Tensor], *, part: bool = False) -> None:
    """Fill tensors, whole or sharded, from a checkpoint of either form.

    Args:
        part: whether the checkpoint may hold more than is asked for.

    Raises:
        ValueError: the checkpoint holds other tensors.
    """
    if not (folder / STATE).exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = HuggingFaceStorageReader(str(folder))
            load(dict(state), storage_reader=reader, no_dist=not dist.is_initialized())
        return
    saved = load_file(folder / STATE)
    if strange := sorted(state.keys() - saved.keys() if part else saved.keys() ^ state.keys()):
        raise ValueError(f"{folder} holds another state than this run's: {', '.join(strange[:4])}")
    for name, x in state.items():
        if isinstance(x, DTensor):
            source = distribute_tensor(saved[name].to(x.device), x.device_mesh, x.placements)
            x.to_local().copy_(source.to_local())
        else:
            x.copy_(saved[name])

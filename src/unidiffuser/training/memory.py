"""When memory runs out: what torch and the machine raise, and what a person can do about it."""

import torch

from unidiffuser.training.preset import OptimiserSettings


def is_short(error: Exception) -> bool:
    """Whether an error says that there is no memory left, on the device or on the machine."""
    # Of the machine's own memory torch has no error of its own: its allocator raises a RuntimeError that names it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def sentence(settings: OptimiserSettings, saved: bool) -> str:
    """What to do. saved: whether a checkpoint of the weights as they are was written."""
    return (
        f"a part of {settings.batch // settings.accumulate} samples does not fit in memory; "
        f"{'the weights are saved' if saved else 'the run goes on from its last checkpoint'}. "
        f"Give the same line with --set training.accumulate={2 * settings.accumulate}, with "
        "--set training.recompute=true, or a smaller --size in another folder"
    )

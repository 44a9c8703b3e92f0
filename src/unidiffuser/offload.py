"""A module that need not stay in memory: its weights are read when it is used and may be dropped after.

    with part.loaded() as module:
        y = module(x)

While it sleeps the module stands on torch's "meta" device: shapes without memory. `Weights` read a tensor from its file
when they are asked for it, so waking costs what the file costs, and nothing where the numbers can be used as they lie
there. A module that was made in memory has no weights elsewhere and never sleeps.

This file knows no file format and no model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Weights(Mapping[str, Tensor]):
    """Named tensors whose shapes are known and which are read one by one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> None:
        """shapes: name -> shape. read: name -> tensor."""
        self.shapes, self.read = dict(shapes), read

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Weights":
        """Tensors that are in memory; weights are returned as they are."""
        if isinstance(tensors, Weights):
            return tensors
        return cls({name: tuple(x.shape) for name, x in tensors.items()}, tensors.__getitem__)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def under(self, prefix: str) -> "Weights":
        """Those whose name begins with the prefix, without it."""
        shapes = {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return Weights(shapes, lambda name: self.read(prefix + name))

    def named(self, names: Mapping[str, str]) -> "Weights":
        """The same tensors under other names: new name -> old name."""
        return Weights({new: self.shapes[old] for new, old in names.items()}, lambda new: self.read(names[new]))


class Offloaded(Generic[M]):
    """A module, where its weights come from, and where it works."""

    def __init__(self, module: M, weights: Weights | None = None) -> None:
        """module: on the meta device if there are weights; else it stays as it is. weights: name -> tensor."""
        self.module, self.weights = module, weights
        self.device, self.dtype, self.keep = torch.device("cpu"), torch.float32, True

    def place(self, device: str | torch.device, dtype: torch.dtype, *, keep: bool = True) -> None:
        """Where and in which numbers it works from now on, and whether it stays awake between uses.

        Raises:
            ValueError: there is no such device here.
        """
        try:
            torch.empty(0, device=device)
            self.device, self.dtype, self.keep = torch.device(device), dtype, keep
            if self.weights is None:
                self.module.to(self.device, self.dtype)
            elif self.awake:
                self.sleep()
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"the device {str(device)!r} cannot be used here; 'cpu' always can") from error

    @property
    def awake(self) -> bool:
        """Whether the weights are in memory."""
        return not any(x.is_meta for x in self.module.parameters())

    def wake(self) -> M:
        """The module with its weights, in evaluation mode."""
        if self.weights is not None and not self.awake:
            with torch.inference_mode(False):  # whoever wakes it to sample, others may need it with gradients
                state = {name: self.weights[name].to(self.device, self.dtype) for name in self.module.state_dict()}
                self.module.load_state_dict(state, assign=True)
                self.module.requires_grad_(False).eval()
                _number_places(self.module, self.device)
        return self.module

    def sleep(self) -> None:
        """Drop the weights, if they can be read again."""
        if self.weights is not None:
            empty = {name: torch.empty_like(x, device="meta") for name, x in self.module.state_dict().items()}
            self.module.load_state_dict(empty, assign=True)

    def settle(self) -> M:
        """The module, awake for good: its weights may now be changed.

        Raises:
            ValueError: it is told to sleep between uses, and would lose what is changed.
        """
        if self.weights is not None and not self.keep:
            raise ValueError("the weights of a model in low memory cannot be changed; load it without low_memory")
        self.wake()
        self.weights = None
        return self.module

    @contextmanager
    def loaded(self) -> Iterator[M]:
        """The module, awake inside; asleep again after it unless it is kept."""
        try:
            yield self.wake()
        finally:
            if not self.keep:
                self.sleep()


def _number_places(module: nn.Module, device: torch.device) -> None:
    """Make the buffers that files leave out; in the parts we know these are the numbers 0, 1, ... of the positions."""
    for owner in module.modules():
        for name, x in owner.named_buffers(recurse=False):
            if x.is_meta:
                assert name == "position_ids", name
                owner.register_buffer(name, torch.arange(x.shape[-1], device=device)[None], persistent=False)

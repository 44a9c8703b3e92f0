"""A module that need not stay in memory: its weights are read when it is used and may be dropped after.

    with part.loaded() as module:
        y = module(x)

While it sleeps the module stands on torch's "meta" device: shapes without memory. `Weights` read a tensor from its file
when they are asked for it, so waking costs what the file costs, and nothing where the numbers can be used as they lie
there. A module that was made in memory has no weights elsewhere and never sleeps. Some of its linear layers may work in
8-bit integers (`int8`); they are rounded one by one as they are read, so that the float weights are never all there.

This file knows no file format and no model.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from unidiffuser.int8 import Int8Linear, check

M = TypeVar("M", bound=nn.Module)


class Weights(Mapping[str, Tensor]):
    """Named tensors whose shapes are known and which are read one by one."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        cast: Callable[[str, torch.dtype], Tensor] | None = None,
    ) -> None:
        """shapes: name -> shape. read: name -> tensor. cast: the same in other numbers, if there is a better way."""
        self.shapes, self.read = dict(shapes), read
        self.cast = cast or (lambda name, dtype: self[name].to(dtype))

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
        return Weights(
            shapes, lambda name: self.read(prefix + name), lambda name, dtype: self.cast(prefix + name, dtype)
        )

    def named(self, names: Mapping[str, str]) -> "Weights":
        """The same tensors under other names: new name -> old name."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Weights(shapes, lambda new: self.read(names[new]), lambda new, dtype: self.cast(names[new], dtype))


class Offloaded(Generic[M]):
    """A module, where its weights come from, and where it works."""

    def __init__(self, module: M, weights: Weights | None = None) -> None:
        """module: on the meta device if there are weights; else it stays as it is. weights: name -> tensor."""
        self.module, self.weights = module, weights
        self.device, self.dtype, self.keep = torch.device("cpu"), torch.float32, True
        self.rounded: tuple[str, ...] = ()

    def place(
        self, device: str | torch.device, dtype: torch.dtype, *, keep: bool = True, rounded: Collection[str] = ()
    ) -> None:
        """Where and in which numbers it works from now on, and whether it stays awake between uses.

        Args:
            rounded: the linear layers that work in 8-bit integers, by dotted name; the rest is in dtype.

        Raises:
            ValueError: there is no such device here, it has no such integers, or what was rounded is to be float again
                and cannot be read again.
        """
        try:
            torch.empty(0, device=device)
            if rounded:
                check(torch.device(device))
            if set(rounded) != set(self.rounded):
                self.check_whole()
            self.sleep()
            self.device, self.dtype, self.keep, self.rounded = torch.device(device), dtype, keep, tuple(rounded)
            if self.weights is None:
                self._round(self.module.get_parameter)
                self.module.to(self.device, self.dtype)
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
                weights = self.weights
                self._round(lambda name: weights.cast(name, torch.float32))
                # What was rounded is no longer among the names.
                names = list(self.module.state_dict())
                state = {name: weights.cast(name, self.dtype).to(self.device) for name in names}
                self.module.load_state_dict(state, assign=True)
                self.module.requires_grad_(False).eval()
                _number_places(self.module, self.device)
        return self.module

    def sleep(self) -> None:
        """Drop the weights, if they can be read again."""
        if self.weights is not None:
            for name, layer in list(self.module.named_modules()):
                if isinstance(layer, Int8Linear):
                    self.module.set_submodule(name, layer.float_layer())
            empty = {name: torch.empty_like(x, device="meta") for name, x in self.module.state_dict().items()}
            self.module.load_state_dict(empty, assign=True)

    def settle(self) -> M:
        """The module, awake for good: its weights may now be changed.

        Raises:
            ValueError: it is told to sleep between uses, and would lose what is changed, or it is in int8.
        """
        if self.rounded:
            raise ValueError("the weights of a network in int8 cannot be changed; load it in other numbers")
        if self.weights is not None and not self.keep:
            raise ValueError("the weights of a model in low memory cannot be changed; load it without low_memory")
        self.wake()
        self.weights = None
        return self.module

    def check_whole(self) -> None:
        """ValueError if it has been rounded and its float weights are nowhere."""
        if self.rounded and self.weights is None:
            raise ValueError("this model was turned to int8 in memory, and its float weights are gone; load it again")

    def _round(self, read: Callable[[str], Tensor]) -> None:
        """Put layers of 8-bit integers in the place of those that are to be rounded and are not yet."""
        for name in self.rounded:
            layer = self.module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            if not isinstance(layer, Int8Linear):
                bias = None if layer.bias is None else read(f"{name}.bias")
                self.module.set_submodule(name, Int8Linear(read(f"{name}.weight"), bias, self.dtype))

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

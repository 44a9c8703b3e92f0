"""Modules that sleep: what is read, when, and what is in memory."""

import pytest
import torch
from torch import Tensor, nn

from unidiffuser.offload import Offloaded, Weights


class Reads:
    """A table that counts how often each tensor is read."""

    def __init__(self) -> None:
        self.tensors = {"0.weight": torch.eye(3), "0.bias": torch.ones(3), "1.weight": torch.full((2, 3), 0.5)}
        self.names: list[str] = []

    def weights(self) -> Weights:
        return Weights({name: tuple(x.shape) for name, x in self.tensors.items()}, self.read)

    def read(self, name: str) -> Tensor:
        self.names.append(name)
        return self.tensors[name]


def part(reads: Reads) -> Offloaded[nn.Module]:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, bias=False))
    return Offloaded(module, reads.weights())


X = torch.tensor([[1.0, 2.0, 3.0]])
Y = torch.tensor([[4.5, 4.5]])


def test_a_part_wakes_when_it_is_used_and_stays() -> None:
    reads = Reads()
    one = part(reads)
    assert not one.awake and reads.names == []
    for _ in range(2):
        with one.loaded() as module:
            assert torch.equal(module(X), Y) and not module.training
            assert not any(p.requires_grad for p in module.parameters())
    assert one.awake and len(reads.names) == 3


def test_a_part_that_is_not_kept_sleeps_after_use() -> None:
    reads = Reads()
    one = part(reads)
    one.place("cpu", torch.bfloat16, keep=False)
    for n in (1, 2):
        with one.loaded() as module:
            assert one.awake and module(X.bfloat16()).dtype == torch.bfloat16
        assert not one.awake and len(reads.names) == 3 * n
    with pytest.raises(RuntimeError, match="in use"), one.loaded():
        raise RuntimeError("in use")
    assert not one.awake


def test_a_part_that_was_woken_to_sample_lets_gradients_through_later() -> None:
    one = part(Reads())
    one.place("cpu", torch.float64)
    with torch.inference_mode():
        one.wake()
    x = X.double().requires_grad_(True)
    one.wake()(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(1, 3).double())


def test_weights_are_used_as_they_lie() -> None:
    reads = Reads()
    one = part(reads)
    one.wake()
    assert one.module.get_parameter("0.weight").data_ptr() == reads.tensors["0.weight"].data_ptr()


def test_placing_an_awake_part_reads_it_again() -> None:
    one = part(Reads())
    one.wake()
    one.place("cpu", torch.float16)
    assert not one.awake
    assert one.wake().get_parameter("0.weight").dtype == torch.float16
    one.place("cpu", torch.float32)
    assert torch.equal(one.wake()(X), Y)  # not the rounded numbers


def test_a_module_made_in_memory_never_sleeps() -> None:
    one = Offloaded(nn.Linear(2, 2))
    one.place("cpu", torch.float32, keep=False)
    one.sleep()
    assert one.awake


def test_weights_that_may_be_changed_are_kept() -> None:
    one = part(Reads())
    one.place("cpu", torch.float32, keep=False)
    with pytest.raises(ValueError, match="low memory cannot be changed; load it without low_memory"):
        one.settle()
    one.place("cpu", torch.float32)
    with torch.no_grad():
        one.settle().get_parameter("1.weight").mul_(2)
    one.sleep()
    with one.loaded() as module:
        assert torch.equal(module(X), 2 * Y)


def test_a_device_that_is_not_there() -> None:
    for device in ("cuda:63", "nonsense"):
        with pytest.raises(ValueError, match=f"the device '{device}' cannot be used here; 'cpu' always can"):
            part(Reads()).place(device, torch.float32)


def test_weights_are_a_table() -> None:
    reads = Reads()
    table = reads.weights()
    assert dict(table.under("0.").shapes) == {"weight": (3, 3), "bias": (3,)}
    assert torch.equal(table.under("0.")["bias"], torch.ones(3))
    assert torch.equal(table.named({"w": "1.weight"})["w"], reads.tensors["1.weight"])
    assert Weights.of(table) is table and Weights.of({"a": X}).shapes == {"a": (1, 3)}
    with pytest.raises(KeyError):
        table["2.weight"]

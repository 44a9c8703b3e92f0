"""8-bit weights and inputs: the exact arithmetic of the rounded numbers, how near it comes to floats, what it saves."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import saved_model, sounding_model, tiny_model
from torch import Tensor

from unidiffuser import UniDiffuser, int8
from unidiffuser.checkpoints import ModelError, native
from unidiffuser.cli import main
from unidiffuser.int8 import Int8Linear
from unidiffuser.joint import noise_like
from unidiffuser.lora import Additions

try:
    int8.check(torch.device("cpu"))
    CANNOT = ""
except ValueError as error:
    CANNOT = str(error)
able = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)


def layer(n: int, k: int, dtype: torch.dtype, bias: bool = True) -> tuple[Int8Linear, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(0)
    weight, shift = torch.randn(n, k, generator=g), torch.randn(n, generator=g) if bias else None
    return Int8Linear(weight, shift, dtype), weight, shift


@able
@pytest.mark.parametrize("shape", [(40, 64), (17, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_rounded_numbers(shape: tuple[int, int], bias: bool) -> None:
    made, weight, shift = layer(*shape, torch.float32, bias)
    x = torch.randn(3, 5, shape[1], generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 5)[:, None]
    values, matrix = x.numpy(), weight.numpy()
    s, w = (np.abs(a).max(-1, keepdims=True) / np.float32(126.5) for a in (values, matrix))
    expected = s * (np.rint(values / s).astype(np.float64) @ np.rint(matrix / w).astype(np.float64).T) * w[:, 0]
    expected = expected if shift is None else expected + shift.numpy()
    # An input that is off by one moves a sum by s times a weight, at least ten times as much.
    np.testing.assert_allclose(made(x).numpy(), expected, rtol=2e-6, atol=2e-6)


@able
def test_no_largest_number_wraps_around_whatever_its_last_bits() -> None:
    """The scale is rounded to bfloat16, and a largest quotient of 128 would come out as -128."""
    largest = torch.arange(0x3F80, 0x4000, dtype=torch.int16).view(torch.bfloat16)  # 1.0 to 2.0, all 128 of them
    x = torch.cat([largest, -largest, 1e-20 * largest])[:, None] * torch.tensor([1.0, -1.0, 0.5], dtype=torch.bfloat16)
    u, s = int8.rounded(x)
    q = u.int() - 128
    assert int(q[:, :2].abs().min()) >= 125 and int(q.abs().max()) <= 127
    assert bool((q[:, 0].sign() == x[:, 0].sign()).all()) and bool((q[:, 1] == -q[:, 0]).all())
    torch.testing.assert_close(s * (u.to(s) - 128), x, rtol=2**-6, atol=0)
    zeros, scale = int8.rounded(torch.zeros(2, 3))
    assert bool((zeros == 128).all()) and bool((scale > 0).all())


@able
def test_rounding_by_tiles_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 32).bfloat16()
    whole = int8.rounded(x)
    monkeypatch.setattr(int8, "TILE", 64)
    assert all(torch.equal(a, b) for a, b in zip(whole, int8.rounded(x), strict=True))


@able
def test_a_token_is_the_same_in_any_batch_to_the_bit() -> None:
    made, _, _ = layer(48, 64, torch.bfloat16)
    x = torch.randn(33, 64).bfloat16()
    whole = made(x)
    for rows in (slice(0, 1), slice(3, 5), slice(10, 26)):
        assert torch.equal(made(x[rows]), whole[rows])


@able
def test_what_is_not_a_number_stays_seen() -> None:
    made, _, _ = layer(8, 8, torch.bfloat16)
    x = torch.zeros(2, 8, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    assert bool(made(x)[0].isnan().all()) and bool(made(x)[1].isfinite().all())


def noise(model: UniDiffuser) -> dict[str, Tensor]:
    joint = noise_like(model.shapes, range(4), "test")
    return model.predict_noise(joint, dict.fromkeys(model.modalities, 0.5))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[s] - b[s]).norm() / b[s].norm()) for s in b)


@able
@pytest.mark.parametrize("make", [tiny_model, sounding_model])
def test_a_network_in_int8_is_near_the_float_network(make: Any) -> None:
    exact, half, eight = noise(make()), noise(make().to("cpu", torch.bfloat16)), noise(make().to("cpu", torch.int8))
    assert distance(half, exact) < distance(eight, exact) < 0.1


@able
def test_only_the_layers_of_blocks_are_rounded() -> None:
    network = tiny_model().to("cpu", torch.int8).network
    names = {name for name, part in network.named_modules() if isinstance(part, Int8Linear)}
    assert names == set(network.block_layers()) and {"mid_block.attention.qkv", "out_blocks.0.skip"} <= names
    assert not any(name.startswith(("embed", "head")) for name in names)
    assert not any("mlp.0" in name or "qkv" in name for name in network.state_dict()), "the float weights are gone"


@able
def test_it_comes_and_goes_and_the_float_weights_come_back(tmp_path: Path) -> None:
    exact = noise(tiny_model())
    low, kept = (
        UniDiffuser.from_pretrained(saved_model(tmp_path / name), dtype=torch.int8, low_memory=low)
        for name, low in (("low", True), ("kept", False))
    )
    assert kept.dtype is torch.int8 and not low.part.awake
    eight = noise(kept)
    assert all(torch.equal(x, eight[s]) for _ in range(2) for s, x in noise(low).items()) and not low.part.awake
    assert all(torch.equal(x, exact[s]) for s, x in noise(kept.to("cpu")).items())
    kept.to("cpu", torch.int8).save(tmp_path / "again")
    assert all(torch.equal(x, exact[s]) for s, x in noise(UniDiffuser.from_pretrained(tmp_path / "again")).items())


@able
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to see the memory of this process")
def test_it_takes_a_quarter_of_the_memory_of_floats() -> None:
    """In a process of its own: what others have given back would be taken again unseen."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    floats, eights = json.loads(done.stdout)
    assert floats > 0.9 * 4 * 12288 * 4096 and eights < 0.4 * floats


HELD = """
import json, os, pathlib, torch
from unidiffuser.offload import Offloaded, Weights

def held():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def taken(rounded):
    with torch.device("meta"):
        part = Offloaded(torch.nn.Sequential(torch.nn.Linear(4096, 12288, bias=False)), weights)
    part.place("cpu", torch.float32, rounded=rounded)
    before = held()
    part.wake()
    return held() - before

weights = Weights({"0.weight": (12288, 4096)}, lambda name: torch.ones(12288, 4096))
print(json.dumps([taken(()), taken(("0",))]))
"""


def test_other_numbers_are_read_past_the_map_and_looked_at(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "good")
    weights = native.read(folder).weights
    assert weights is not None
    name = "mid_block.mlp.0.weight"
    assert torch.equal(weights.cast(name, torch.bfloat16), weights[name].bfloat16())
    assert weights.cast(name, torch.float32).data_ptr() == weights[name].data_ptr(), "as they lie"
    spoilt = tiny_model()
    spoilt.network.get_parameter(name)[0, 0] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))
        spoilt.save(tmp_path / "spoilt")
    with pytest.raises(ModelError, match=r"holds weights that are NaN or infinite \(network.mid_block.mlp.0.weight\)"):
        UniDiffuser.from_pretrained(tmp_path / "spoilt", dtype=torch.bfloat16)


def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="int8 works on the CPU alone, not on 'meta'; choose bfloat16 there"):
        model.to("meta", torch.int8)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(ValueError, match="int8 needs a processor with AVX-512 VNNI and bfloat16, and a torch with"):
        model.to("cpu", torch.int8)
    assert model.dtype is torch.float32 and model.sample("text", seed=1, steps=1)


@able
def test_what_has_no_float_weights_any_more_says_so(tmp_path: Path) -> None:
    model = tiny_model().to("cpu", torch.int8)
    with pytest.raises(ValueError, match="turned to int8 in memory, and its float weights are gone; load it again"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="load it again"):
        model.to("cpu")
    loaded = UniDiffuser.from_pretrained(saved_model(tmp_path / "file"), dtype=torch.int8)
    for each in (model, loaded):
        with pytest.raises(ValueError, match="network in int8 cannot be changed; load it in other numbers"):
            each.add(Additions({}, 1.0))


@able
def test_a_picture_made_in_int8_is_made_again_from_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(line: str) -> dict[str, Any]:
        assert main(shlex.split(f"{line} --json")) == 0, capsys.readouterr().err
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    ask = f"sample image --model {saved_model(tmp_path / 'model')} --low-memory"
    run(f"{ask} --text 'a red circle' --dtype int8 --steps 2 --seed 1 --out {tmp_path / 'a'}")
    again = f"{ask} --like {tmp_path / 'a' / '0000.png'}"
    assert run(f"{again} --out {tmp_path / 'b'}")["reproduced"] is True
    assert "reproduced" not in run(f"{again} --dtype float32 --out {tmp_path / 'c'}"), "that is another request"

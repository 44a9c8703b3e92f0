"""Reuse of inner blocks: exact where it should be, cheaper where it is not, and closer the more is computed."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_model import LENGTH, SIZE, WIDTH, tiny_model
from torch import Tensor

from unidiffuser import UniDiffuser
from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.joint import noise_like
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.networks.uvit import UViT, UViTConfig
from unidiffuser.process import PROCESSES
from unidiffuser.reuse import Reuse, ReusingDenoiser

DEPTH = 6
STREAMS = {"image": (3, SIZE, SIZE), "text": (LENGTH, WIDTH)}


def network() -> UViT:
    torch.manual_seed(0)
    made = UViT(UViTConfig(streams=STREAMS, dim=32, depth=DEPTH, heads=2, patch=32, norm="pre", labels=2))
    for p in made.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return made.requires_grad_(False).eval()


def inputs(batch: int = 2, t: float = 0.5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return noise_like(STREAMS, range(batch), "test"), {m: torch.full((batch,), t) for m in STREAMS}


def denoisers(reuse: Reuse, **options: Any) -> tuple[NetworkDenoiser, ReusingDenoiser]:
    made, process = network(), PROCESSES["cosine"]()
    return (
        NetworkDenoiser(made, process, "v", **options),
        ReusingDenoiser(reuse, made, process, "v", **options),
    )


def counted(block: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    block.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_which_blocks_are_computed() -> None:
    _, reusing = denoisers(Reuse(every=3, outer=1))
    calls = [counted(block) for block in reusing.uvit.blocks()]
    for _ in range(7):
        reusing(*inputs())
    assert [len(each) for each in calls] == [7, 3, 3, 3, 3, 3, 7]


def test_the_first_evaluation_is_exact_and_the_next_is_near() -> None:
    exact, reusing = denoisers(Reuse(every=2, outer=1), label=1)
    for k, t in enumerate((0.5, 0.49, 0.48, 0.47)):
        a, b = exact(*inputs(t=t)), reusing(*inputs(t=t))
        worst = max(float((a[s] - b[s]).abs().max()) for s in a)
        assert worst == 0 if k % 2 == 0 else 0 < worst < 0.1


def test_what_is_reused_does_not_see_the_new_input() -> None:
    """With every pair outside, only the middle block is old; the error falls as more is computed."""
    errors = []
    for outer in range(1, DEPTH // 2 + 1):
        exact, reusing = denoisers(Reuse(every=2, outer=outer))
        reusing(*inputs(t=0.6))
        a, b = exact(*inputs(t=0.5)), reusing(*inputs(t=0.5))
        errors.append(sum(float((a[s] - b[s]).square().sum()) for s in a))
    assert errors[0] > errors[-1] > 0


def test_another_batch_begins_anew() -> None:
    exact, reusing = denoisers(Reuse(every=9, outer=1))
    for batch in (2, 4, 2):
        a, b = exact(*inputs(batch)), reusing(*inputs(batch))
        assert all(torch.equal(a[s], b[s]) for s in a)


def test_only_the_wanted_heads() -> None:
    _, reusing = denoisers(Reuse(every=2), wanted=["text"])
    assert [list(reusing(*inputs())) for _ in range(2)] == [["text"], ["text"]]


def test_a_sample_is_the_same_in_any_batch_and_call() -> None:
    model = tiny_model()
    both = model.sample("image", text="a red circle", n=2, seed=1, steps=6, guidance=2.0, reuse=Reuse(every=2))
    [second] = model.sample("image", text="a red circle", seed=2, steps=6, guidance=2.0, reuse=Reuse(every=2))
    assert both[1]["image"].tobytes() == second["image"].tobytes()
    exact = model.sample("image", text="a red circle", seed=2, steps=6, guidance=2.0)[0]
    assert exact["image"].tobytes() != second["image"].tobytes()


def test_a_model_may_reuse_by_itself(tmp_path: Any) -> None:
    model = tiny_model()
    asked = model.sample("text", seed=1, steps=4, reuse=Reuse(every=2))
    model.settings = dataclasses.replace(model.settings, reuse=Reuse(every=2))
    model.save(tmp_path / "model")
    again = UniDiffuser.from_pretrained(tmp_path / "model")
    assert again.settings.reuse == Reuse(every=2)
    assert again.sample("text", seed=1, steps=4) == asked


@pytest.mark.parametrize("every, outer", [(1, 1), (101, 1), (2, 0)])
def test_impossible_reuse(every: int, outer: int) -> None:
    with pytest.raises(ValueError, match=f"not every {every} and {outer} pairs"):
        Reuse(every=every, outer=outer)


def test_networks_without_long_skips_cannot() -> None:
    mlp = MLP(MLPConfig(streams={"a": (1, 2)}))
    for made, outer in ((mlp, 1), (network(), 4)):
        with pytest.raises(ValueError, match=f"cannot reuse its inner blocks beyond {outer} outer pairs"):
            ReusingDenoiser(Reuse(outer=outer), made, PROCESSES["cosine"](), "v")

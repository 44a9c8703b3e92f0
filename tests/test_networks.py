"""The networks against an independent statement of the paper's forward pass, and what they promise about shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unidiffuser.networks import build, find, kinds
from unidiffuser.networks.uvit import UViT, UViTConfig, rotate, unpatchify

SHAPES = {"text": (5, 3), "image.clip": (1, 6), "image.latent": (4, 4, 4)}


def uvit(norm: str = "post", labels: int = 2) -> UViT:
    torch.manual_seed(0)
    config = UViTConfig(
        streams=SHAPES, modalities=("image", "text"), dim=16, depth=4, heads=2, norm=norm, labels=labels
    )
    network = UViT(config)
    for p in network.parameters():  # no bias and no norm stays at its initial 0 or 1
        torch.nn.init.normal_(p, std=0.3)
    return network.eval()


def joint(batch: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    g = torch.Generator().manual_seed(1)
    xt = {s: torch.randn(batch, *shape, generator=g) for s, shape in SHAPES.items()}
    t = {m: torch.rand(batch, generator=g) for m in ("image", "text")}
    return xt, t, torch.arange(batch) % 2


def restated(w: dict[str, Tensor], xt: dict[str, Tensor], t: dict[str, Tensor], label: Tensor) -> dict[str, Tensor]:
    """The released architecture from its description alone: loops, no modules, heads one by one."""
    d, heads = 16, 2

    def time_token(value: Tensor) -> Tensor:
        angles = [[v * 1000 * 10000 ** (-i / (d // 2)) for i in range(d // 2)] for v in value.tolist()]
        return torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles])

    def linear(x: Tensor, name: str) -> Tensor:
        out = x @ w[f"{name}.weight"].T
        return out + w[f"{name}.bias"] if f"{name}.bias" in w else out

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(x, f"{name}.qkv").split(d, -1)
        parts = []
        for h in range(heads):
            cut = slice(h * d // heads, (h + 1) * d // heads)
            scores = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(d // heads)
            parts.append(torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True) @ v[..., cut])
        return linear(torch.cat(parts, -1), f"{name}.proj")

    def block(x: Tensor, name: str, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = norm(linear(torch.cat([x, skip], -1), f"{name}.skip"), f"{name}.skip_norm")
        x = norm(x + attend(x, f"{name}.attention"), f"{name}.attention_norm")
        hidden = linear(x, f"{name}.mlp.0")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return norm(x + linear(hidden, f"{name}.mlp.2"), f"{name}.mlp_norm")

    latent = xt["image.latent"]
    rows = [latent[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) for i in range(2) for j in range(2)]
    kernel = w["embed.image_latent.weight"].flatten(1)
    patches = torch.stack([row @ kernel.T + w["embed.image_latent.bias"] for row in rows], 1)
    tokens = [time_token(t["image"])[:, None], time_token(t["text"])[:, None]]
    tokens += [linear(xt["text"], "embed.text"), linear(xt["image.clip"], "embed.image_clip"), patches]
    x = torch.cat(tokens, 1) + w["position"]
    x = torch.cat([x[:, :2], (w["label.weight"][label])[:, None] + w["label_position"], x[:, 2:]], 1)

    first = block(x, "in_blocks.0")
    second = block(first, "in_blocks.1")
    x = block(second, "mid_block")
    x = block(x, "out_blocks.0", second)
    x = norm(block(x, "out_blocks.1", first), "norm")
    out = linear(x[:, 9:], "head.image_latent")
    picture = torch.zeros_like(latent)
    for n in range(4):
        for a in range(2):
            for b in range(2):
                picture[:, :, 2 * (n // 2) + a, 2 * (n % 2) + b] = out[:, n, 4 * (2 * a + b) : 4 * (2 * a + b) + 4]
    return {
        "text": linear(x[:, 3:8], "head.text"),
        "image.clip": linear(x[:, 8:9], "head.image_clip"),
        "image.latent": picture,
    }


def test_uvit_is_the_papers_network() -> None:
    network, (xt, t, label) = uvit(), joint()
    expected = restated(dict(network.state_dict()), xt, t, label)
    for stream, out in network(xt, t, label).items():
        torch.testing.assert_close(out, expected[stream], rtol=1e-4, atol=1e-4)


def test_pre_normalisation_is_another_network_of_the_same_shape() -> None:
    xt, t, label = joint()
    pre = uvit("pre")(xt, t, label)
    assert {s: x.shape for s, x in pre.items()} == {s: x.shape for s, x in xt.items()}
    assert not torch.allclose(pre["text"], uvit("post")(xt, t, label)["text"])


def test_attention_for_training_equals_attention_for_sampling() -> None:
    network, (xt, t, label) = uvit(), joint()
    trained = network(xt, t, label)
    with torch.inference_mode():
        sampled = network(xt, t, label)
    for stream, out in sampled.items():
        torch.testing.assert_close(out, trained[stream].detach(), rtol=1e-4, atol=1e-5)


def test_a_grid_of_another_size_has_interpolated_positions() -> None:
    network, (xt, t, label) = uvit(), joint()
    xt["image.latent"] = torch.randn(3, 4, 6, 10)
    assert network(xt, t, label)["image.latent"].shape == (3, 4, 6, 10)
    shapes = {s: tuple(x.shape[1:]) for s, x in xt.items()}
    grid = network.position[0, 8:].T.reshape(1, 16, 2, 2)
    wide = network._positions(shapes)[0, 8:].T.reshape(1, 16, 3, 5)
    torch.testing.assert_close(wide, F.interpolate(grid, (3, 5), mode="bilinear"))


def rotary(streams: dict[str, tuple[int, ...]]) -> UViT:
    return UViT(UViTConfig(streams=streams, dim=32, heads=2, depth=2, rotary=True))


def test_rotated_attention_sees_how_far_apart_two_tokens_are_and_nothing_else() -> None:
    network = rotary({"text": (9, 3), "image": (4, 8, 8)})
    rotation = network.rotation(network.config.streams, torch.zeros(1))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    n = 2 + 9 + 16
    scores = rotate(q.expand(n, 16), rotation) @ rotate(k.expand(n, 16), rotation).T
    words, patches = scores[2:11, 2:11], scores[11:, 11:].view(4, 4, 4, 4)
    for apart in range(-8, 9):
        torch.testing.assert_close(words.diagonal(apart), words.diagonal(apart)[:1].expand(9 - abs(apart)))
    torch.testing.assert_close(patches[:3, :2, 1:, 2:].diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1),
                               patches[0, 0, 1, 2].expand(3, 2))  # fmt: skip
    assert words[0].std() > 0.1 and patches[0, 0].std() > 0.1


def test_a_larger_grid_is_rotated_over_the_same_range() -> None:
    network = rotary({"image": (4, 8, 8)})
    cos, _ = network.rotation({"image": (4, 16, 16)}, torch.zeros(1))
    known, _ = network.rotation({"image": (4, 8, 8)}, torch.zeros(1))
    torch.testing.assert_close(cos[1:].view(8, 8, -1)[1::2, 1::2], known[1:].view(4, 4, -1))


def test_unpatchify_puts_every_number_in_its_place() -> None:
    x = torch.randn(2, 3, 4, 6)
    tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(2, 6, 12)
    assert torch.equal(unpatchify(tokens, (3, 4, 6), 2), x)


KINDS = [{"kind": kind} for kind in kinds()] + [{"kind": "uvit", "rotary": True, "timestep_mlp": True, "heads": 2}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_from_its_description_and_every_parameter_learns(kind: dict[str, object]) -> None:
    torch.manual_seed(0)
    streams = {"image": [2, 4, 4], "text": [3, 5]}
    network = build({**kind, "streams": streams, "dim": 16})
    again = build(network.describe())
    again.load_state_dict(network.state_dict())
    xt = {s: torch.randn(4, *shape) for s, shape in streams.items()}
    t = {"image": torch.rand(4), "text": torch.rand(4)}
    out = network(xt, t)
    assert all(torch.equal(out[s], x) for s, x in again(xt, t).items())
    torch.stack([x.square().sum() for x in out.values()]).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_batch_to_the_bit(kind: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build({**kind, "streams": {"image": [4, 8, 8], "text": [20, 16]}, "dim": 64}).eval()
    xt = {"image": torch.randn(33, 4, 8, 8), "text": torch.randn(33, 20, 16)}
    t = {"image": torch.rand(33), "text": torch.rand(33)}
    with torch.inference_mode():
        whole = network(xt, t)
        for rows in (slice(0, 1), slice(3, 5), slice(7, 10), slice(10, 26)):
            part = network({s: x[rows] for s, x in xt.items()}, {m: value[rows] for m, value in t.items()})
            assert all(torch.equal(part[s], x[rows]) for s, x in whole.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 3}, "even depth"),
        ({"dim": 10, "heads": 4}, "multiple of twice its heads"),
        ({"norm": "no"}, "'post' or 'pre'"),
        ({"rotary": True}, "heads of at least 8"),
        ({"streams": {}}, "at least one stream"),
        ({"streams": {"image": (4, 3, 3)}}, "multiple of the patch"),
        ({"streams": {"image": (4,)}}, "a grid is"),
        ({"modalities": ("sound",)}, "timestep tokens"),
        ({"width": 3}, "has no setting width"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UViT.from_config({"streams": {"text": (2, 3)}, "dim": 16, **change})


def test_only_files_of_the_folder_are_networks() -> None:
    with pytest.raises(ValueError, match="there is no network"):
        find("os")

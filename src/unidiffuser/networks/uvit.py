"""The joint U-ViT: every stream becomes tokens of one transformer with long skips.

Bao et al. 2023, "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale" (arXiv 2303.06555), on the
U-ViT of Bao et al. 2022 (arXiv 2209.12152): a token for the timestep of each modality, an optional token for a global
label, then the tokens of every stream; a first half of blocks, one in the middle, and a second half each of which
takes the output of its mirror image through a linear layer. The released model normalises after attention and after
the MLP, on the residual path itself ("post"); the original U-ViT normalises before them ("pre").

Two options are not the paper's. Small networks learn much faster with them (docs/LOG.md):

    rotary        queries and keys are rotated by angles that grow with the token's row, column or index, so that
                  attention sees how far apart two tokens are (Su et al. 2021, arXiv 2104.09864)
    timestep_mlp  besides its token, a timestep is added through an MLP to every token of its modality

A third, `unseen`, grows a modality onto a trained network: no other token looks at it while it is ignored (t = 1), so
there the network is the one it was.

Shapes: B batch, N tokens, D width, H heads, M modalities.

The network sees shapes and timesteps in [0, 1]. It knows nothing of noise schedules, files or tokenizers.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidiffuser.joint import Joint, Shapes, modalities_of, modality_of
from unidiffuser.networks import Network, steadily

INIT_STD = 0.02
MIN_PAIRS = 4
"""Rotated pairs a head: a quarter turn with the row, a quarter with the column, half with the index."""

Rotation = tuple[Tensor, Tensor]
"""The cosines and sines by which every token is rotated, each (N, D/H/2)."""


class Sight(NamedTuple):
    """What attention knows of the tokens besides their content."""

    rotation: Rotation | None = None
    """For `rotary`."""
    hidden: Tensor | None = None
    """For `unseen`: -inf where a token must not look at another, else 0, (B, 1, N, N)."""


@dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """The shape of a joint U-ViT."""

    streams: Mapping[str, tuple[int, ...]]
    """Stream -> shape of one sample, in token order: (C, H, W) is a grid, (L, C) a sequence."""
    modalities: tuple[str, ...] = ()
    """The order of the timestep tokens; empty: the order in which the streams name their modalities."""
    dim: int = 256
    """Width D."""
    depth: int = 8
    """Blocks outside the middle, an even number: depth / 2 in, 1 middle, depth / 2 out."""
    heads: int = 4
    """Attention heads H; dim is a multiple of it."""
    mlp_ratio: int = 4
    """Width of the MLP's hidden layer over D."""
    patch: int = 2
    """Side of the square patch of a grid that becomes one token."""
    norm: Literal["post", "pre"] = "post"
    """Where a block normalises: as the released UniDiffuser (post) or as the original U-ViT (pre)."""
    labels: int = 0
    """Number of global labels (the data type of the released v1); 0: no label token."""
    rotary: bool = False
    """Whether attention also sees relative places: rows and columns of grids, indices of sequences."""
    timestep_mlp: bool = False
    """Whether a modality's timestep is also added to all its tokens, through an MLP."""
    unseen: tuple[str, ...] = ()
    """Modalities whose tokens no others attend to while they are ignored, at t = 1 exactly."""
    reach: tuple[float, ...] = ()
    """The rows, columns and indices over which the angles of `rotary` spread; empty: the most that a stream has."""

    def __post_init__(self) -> None:
        if not self.streams:
            raise ValueError("a network needs at least one stream")
        if self.dim % (2 * self.heads) or self.depth % 2 or min(self.dim, self.heads, self.patch, self.mlp_ratio) < 1:
            raise ValueError(
                f"a U-ViT needs an even depth and a width that is a multiple of twice its heads, "
                f"not depth {self.depth}, width {self.dim}, heads {self.heads}"
            )
        if self.rotary and self.dim // self.heads < 2 * MIN_PAIRS:
            raise ValueError(
                f"rotary positions need heads of at least {2 * MIN_PAIRS} numbers, not {self.dim // self.heads}"
            )
        if self.norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', not {self.norm!r}")
        for stream, shape in self.streams.items():
            if len(shape) not in (2, 3):
                raise ValueError(f"stream {stream!r} has the shape {shape}; a grid is (C, H, W), a sequence is (L, C)")
            if len(shape) == 3 and (shape[1] % self.patch or shape[2] % self.patch):
                raise ValueError(
                    f"the grid {stream!r} of {shape[1]} x {shape[2]} is not a multiple of the patch {self.patch}"
                )
        names = modalities_of(self.streams)
        if strangers := sorted(set(self.unseen) - set(names)):
            raise ValueError(f"unseen names {', '.join(strangers)}, but the streams belong to {', '.join(names)}")
        if len(self.reach) not in (0, 3) or any(not far >= 1 for far in self.reach):
            raise ValueError(f"reach is {self.reach}; it must be empty or three numbers from 1 on")
        if self.modalities and sorted(self.modalities) != sorted(names):
            raise ValueError(f"the timestep tokens are for {self.modalities}, but the streams belong to {names}")


class UViT(Network):
    """A joint U-ViT for any list of grid and sequence streams."""

    kind = "uvit"
    Config = UViTConfig
    config: UViTConfig

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = config.modalities or tuple(modalities_of(config.streams))
        self.embed = nn.ModuleDict({_key(s): _embedding(shape, config) for s, shape in config.streams.items()})
        self.head = nn.ModuleDict(
            {_key(s): nn.Linear(config.dim, _token_size(shape, config)) for s, shape in config.streams.items()}
        )
        tokens = len(self.modalities) + sum(_tokens(shape, config.patch) for shape in config.streams.values())
        self.position = nn.Parameter(torch.zeros(1, tokens, config.dim))
        if config.labels:
            self.label = nn.Embedding(config.labels, config.dim)
            self.label_position = nn.Parameter(torch.zeros(1, 1, config.dim))
        half = config.depth // 2
        self.in_blocks = nn.ModuleList(Block(config) for _ in range(half))
        self.mid_block = Block(config)
        self.out_blocks = nn.ModuleList(Block(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(config.dim)
        d, added = config.dim, self.modalities if config.timestep_mlp else ()
        self.timestep = nn.ModuleDict({m: nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d)) for m in added})
        self.apply(_initialise)
        for embedding in self.embed.values():
            assert isinstance(embedding, nn.Linear | PatchEmbedding)
            embedding.reset_parameters()  # torch's default: tokens of about unit size, beside which 0.02 is nothing
        nn.init.trunc_normal_(self.position, std=INIT_STD)

    def forward(
        self,
        xt: Joint,
        t: Mapping[str, Tensor],
        label: Tensor | None = None,
        wanted: Collection[str] | None = None,
    ) -> Joint:
        return self.read_out(self.features(xt, t, label), xt, wanted)

    def features(self, xt: Joint, t: Mapping[str, Tensor], label: Tensor | None = None) -> Tensor:
        """The tokens after the last block, (B, N, D)."""
        x = self.tokens(xt, t, label)  # (B, N, D)
        return self.through(x, self.sight(t, self.shapes(xt), x))[0]

    def read_out(self, features: Tensor, xt: Joint, wanted: Collection[str] | None = None) -> Joint:
        return self.streams(features, self.shapes(xt), wanted)

    def shapes(self, xt: Joint) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of every stream, in token order."""
        return {stream: tuple(xt[stream].shape[1:]) for stream in self.config.streams}

    def blocks(self) -> list[nn.Module]:
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def tokens(self, xt: Joint, t: Mapping[str, Tensor], label: Tensor | None) -> Tensor:
        """[timestep of each modality, label, stream, stream, ...] plus positions: (B, N, D)."""
        dtype = self.position.dtype
        times = {m: sinusoid(t[m] * 1000.0, self.config.dim).to(dtype) for m in self.modalities}
        parts = [time[:, None] for time in times.values()]
        added = {m: steadily(mlp, times[m])[:, None] for m, mlp in self.timestep.items()} if self.timestep else {}
        for stream in self.config.streams:
            embedding, values = self.embed[_key(stream)], xt[stream].to(dtype)
            tokens = embedding(values) if values.ndim == 4 else steadily(embedding, values)
            parts.append(tokens + added[modality_of(stream)] if added else tokens)
        x = torch.cat(parts, 1) + self._positions(self.shapes(xt))
        if not self.config.labels:
            return x
        if label is None:
            label = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        m = len(self.modalities)
        return torch.cat([x[:, :m], self.label(label)[:, None] + self.label_position, x[:, m:]], 1)

    def through(
        self, x: Tensor, sight: Sight, outer: int | None = None, inner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All blocks: (B, N, D) -> (B, N, D).

        Args:
            outer: how many pairs of blocks count as the outer ones; all if absent.
            inner: what the inner blocks put out at another timestep, to be taken in their place; see `reuse`.

        Returns:
            The output of the last block, and that of the inner blocks.
        """
        half = len(self.in_blocks)
        outer = half if outer is None else outer
        skips = []
        for block in self.in_blocks[:outer]:
            x = block(x, sight)
            skips.append(x)
        if inner is None:
            inner = self._inner(x, sight, outer)
        x = inner
        for block in self.out_blocks[half - outer :]:
            x = block(x, sight, skips.pop())
        return x, inner

    def _inner(self, x: Tensor, sight: Sight, outer: int) -> Tensor:
        """The blocks between the outer ones."""
        skips = []
        for block in self.in_blocks[outer:]:
            x = block(x, sight)
            skips.append(x)
        x = self.mid_block(x, sight)
        for block in self.out_blocks[: len(skips)]:
            x = block(x, sight, skips.pop())
        return x

    def streams(self, x: Tensor, shapes: Shapes, wanted: Collection[str] | None = None) -> Joint:
        """The inverse of `tokens`: (B, N, D) normalised, then the heads of the wanted streams -> stream -> (B, ...)."""
        start = len(self.modalities) + bool(self.config.labels)
        joint = {}
        for stream, shape in shapes.items():
            n = _tokens(shape, self.config.patch)
            if wanted is None or stream in wanted:
                out = steadily(self.head[_key(stream)], self.norm(x[:, start : start + n]))
                joint[stream] = unpatchify(out, shape, self.config.patch) if len(shape) == 3 else out
            start += n
        return joint

    def _positions(self, shapes: Shapes) -> Tensor:
        """The learned positions; those of a grid of another size are interpolated (bilinear)."""
        if all(shapes[stream] == tuple(shape) for stream, shape in self.config.streams.items()):
            return self.position
        p, d = self.config.patch, self.config.dim
        start = len(self.modalities)
        parts = [self.position[:, :start]]
        for stream, shape in self.config.streams.items():
            n = _tokens(shape, p)
            part = self.position[:, start : start + n]
            if len(shape) == 3:
                grid = part.transpose(1, 2).reshape(1, d, shape[1] // p, shape[2] // p)
                size = (shapes[stream][1] // p, shapes[stream][2] // p)
                part = F.interpolate(grid, size, mode="bilinear").flatten(2).transpose(1, 2)
            parts.append(part)
            start += n
        return torch.cat(parts, 1)

    def sight(self, t: Mapping[str, Tensor], shapes: Shapes, x: Tensor) -> Sight:
        """What attention knows of the tokens x (B, N, D) of streams of these shapes."""
        return Sight(
            self.rotation(shapes, x) if self.config.rotary else None,
            self._hidden(t, shapes) if self.config.unseen else None,
        )

    def rotation(self, shapes: Shapes, x: Tensor) -> Rotation:
        """By which angles each token of x (B, N, D) is rotated; a grid of another size is stretched to the one known.

        Row, column and index count from 1; 0 stands for having none. The fastest pair makes a quarter turn a step, the
        slowest a quarter turn in twice the longest stream.
        """
        p, pairs = self.config.patch, self.config.dim // self.config.heads // 2
        places = [torch.zeros(len(self.modalities) + bool(self.config.labels), 3)]
        for stream, known in self.config.streams.items():
            place = torch.zeros(_tokens(shapes[stream], p), 3)
            if len(known) == 3:
                rows, columns = (torch.arange(1.0, n // p + 1) for n in shapes[stream][1:])
                scale = torch.tensor([known[1] / shapes[stream][1], known[2] / shapes[stream][2]])
                place[:, :2] = torch.cartesian_prod(rows, columns) * scale
            else:
                place[:, 2] = torch.arange(1.0, known[0] + 1)
            places.append(place)
        longest = self.config.reach or self.reach()
        shares = (pairs // 4, pairs // 4, pairs - 2 * (pairs // 4))
        angles = torch.cat(
            [
                place[:, None] * (math.pi / 2) * (2 * far) ** -torch.linspace(0, 1, n)
                for place, far, n in zip(torch.cat(places).unbind(1), longest, shares, strict=True)
            ],
            1,
        ).to(x.device)
        return angles.cos(), angles.sin()

    def reach(self) -> tuple[float, float, float]:
        """The most rows, columns and indices that a stream has, 1 at least."""
        p, most = self.config.patch, [1.0, 1.0, 1.0]
        for shape in self.config.streams.values():
            ends = (shape[1] / p, shape[2] / p, 1.0) if len(shape) == 3 else (1.0, 1.0, float(shape[0]))
            most = [max(a, b) for a, b in zip(most, ends, strict=True)]
        return most[0], most[1], most[2]

    def places(self, shapes: Shapes | None = None) -> dict[str, slice]:
        """Which positions belong to the timestep of each modality ("t.NAME") and to each stream."""
        places, start = {f"t.{m}": slice(k, k + 1) for k, m in enumerate(self.modalities)}, len(self.modalities)
        for stream, shape in (shapes or self.config.streams).items():
            n = _tokens(shape, self.config.patch)
            places[stream] = slice(start, start + n)
            start += n
        return places

    def _hidden(self, t: Mapping[str, Tensor], shapes: Shapes) -> Tensor:
        """Which token must not look at which: (B, 1, N, N), -inf where the one is another's and unseen, else 0."""
        places, device = self.places(shapes), self.position.device
        owner = torch.full((max(place.stop for place in places.values()),), -1, device=device)
        for key, place in places.items():
            owner[place] = self.modalities.index(modality_of(key.removeprefix("t.")))
        if self.config.labels:  # the label's token belongs to no modality
            m = len(self.modalities)
            owner = torch.cat([owner[:m], owner.new_full((1,), -1), owner[m:]])
        batch = next(iter(t.values())).shape[0]
        hidden = torch.zeros(batch, 1, len(owner), len(owner), device=device)
        for name in self.config.unseen:
            k = self.modalities.index(name)
            others = (owner != k)[:, None] & (owner == k)[None, :]
            hidden.masked_fill_((t[name] == 1)[:, None, None, None] & others, -torch.inf)
        return hidden


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel, as one matrix product: (B, C, H, W) -> (B, H W / p^2, D).

    A convolution of one picture adds up in another order than that of many; a product's rows are the same in any batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        p = self.kernel_size[0]
        patches = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5)  # (B, h, w, C, p, p)
        rows = patches.flatten(3).flatten(1, 2)  # (B, h w, C p p)
        return steadily(lambda x: F.linear(x, self.weight.flatten(1), self.bias), rows)


class Block(nn.Module):
    """Attention and MLP, each with a residual; in the second half, first the long skip."""

    def __init__(self, config: UViTConfig, skip: bool = False) -> None:
        super().__init__()
        d, self.post = config.dim, config.norm == "post"
        self.skip = nn.Linear(2 * d, d) if skip else None
        self.skip_norm = nn.LayerNorm(d) if skip and self.post else nn.Identity()
        self.attention, self.attention_norm = Attention(d, config.heads), nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, config.mlp_ratio * d), nn.GELU(), nn.Linear(config.mlp_ratio * d, d))
        self.mlp_norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, sight: Sight, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            assert skip is not None
            x = self.skip_norm(self.skip(torch.cat([x, skip], -1)))
        if self.post:
            x = self.attention_norm(x + self.attention(x, sight))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(self.attention_norm(x), sight)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Full bidirectional self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, D/H)
        if sight.rotation is not None:
            q, k = rotate(q, sight.rotation), rotate(k, sight.rotation)
        return self.proj(attention(q, k, v, sight.hidden).transpose(1, 2).flatten(2))  # (B, N, D)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of (B, H, N, d) by the angles of their token."""
    cos, sin = (part.to(x.dtype) for part in rotation)  # (N, d/2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + hidden) v over (B, H, N, d)."""
    if q.device.type == "cpu" and q.requires_grad:
        # The fused kernel's backward in bfloat16 takes a slow path on CPUs; plain products are twice as fast.
        weights = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
        return (weights if hidden is None else weights + hidden).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, None if hidden is None else hidden.to(q.dtype))


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (dim/2)): (B,) -> (B, dim), float32. The cosines come first."""
    w = torch.exp(torch.arange(dim // 2, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / (dim // 2)))
    angle = t.float()[:, None] * w
    return torch.cat([angle.cos(), angle.sin()], -1)


def unpatchify(tokens: Tensor, shape: tuple[int, ...], patch: int) -> Tensor:
    """(B, h w, p p C), channel fastest -> (B, C, h p, w p)."""
    channels, height, width = shape
    x = tokens.unflatten(-1, (patch, patch, channels)).unflatten(1, (height // patch, width // patch))
    return x.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], channels, height, width)


def _key(stream: str) -> str:
    """Module names must not hold dots."""
    return stream.replace(".", "_")


def _tokens(shape: tuple[int, ...], patch: int) -> int:
    return (shape[1] // patch) * (shape[2] // patch) if len(shape) == 3 else shape[0]


def _token_size(shape: tuple[int, ...], config: UViTConfig) -> int:
    return shape[0] * config.patch**2 if len(shape) == 3 else shape[1]


def _embedding(shape: tuple[int, ...], config: UViTConfig) -> nn.Module:
    if len(shape) == 3:
        return PatchEmbedding(shape[0], config.dim, config.patch, config.patch)
    return nn.Linear(shape[1], config.dim)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

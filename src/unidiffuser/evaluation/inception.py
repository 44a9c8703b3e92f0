"""Inception v3 as FID uses it (Szegedy et al. 2016; Heusel et al. 2017): pictures -> the 2048 averages of its end.

The network is the one that was published with FID, which differs from others of that name: its average pools do not
count the padding, and the pool of the last block takes the maximum. Its weights are not shipped; names and shapes are
those of `pt_inception-2015-12-05` as torch users have it, a table of tensors (safetensors, or a pickle that is read as
weights only). Pictures are resized to 299 x 299 linearly, without anti-aliasing, as the usual implementation does.

A block is a table: branches side by side, a branch one convolution after another.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.tables import read_table

SIDE = 299

Convolution = tuple[str, int, tuple[int, int], int]
"""(name, channels, kernel (height, width), stride); a stride of 2 goes without padding."""
Branch = tuple[tuple[Convolution, ...], ...]
"""Stages one after another; the convolutions of a stage stand side by side, all on the same input."""


def _chain(*convolutions: Convolution) -> Branch:
    return tuple((each,) for each in convolutions)


def _one(name: str, channels: int) -> Convolution:
    return name, channels, (1, 1), 1


def _three(name: str, channels: int, stride: int = 1) -> Convolution:
    return name, channels, (3, 3), stride


def _wide(name: str, channels: int, width: int = 7) -> Convolution:
    return name, channels, (1, width), 1


def _high(name: str, channels: int, height: int = 7) -> Convolution:
    return name, channels, (height, 1), 1


def _double(last_stride: int = 1) -> Branch:
    """1 x 1 and two 3 x 3."""
    return _chain(_one("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96, last_stride))


def _a(pooled: int) -> tuple[Branch, ...]:
    five = _chain(_one("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5), 1))
    return _chain(_one("branch1x1", 64)), five, _double(), _chain(_one("branch_pool", pooled))


def _c(width: int) -> tuple[Branch, ...]:
    seven = _chain(_one("branch7x7_1", width), _wide("branch7x7_2", width), _high("branch7x7_3", 192))
    twice = _chain(
        _one("branch7x7dbl_1", width),
        _high("branch7x7dbl_2", width),
        _wide("branch7x7dbl_3", width),
        _high("branch7x7dbl_4", width),
        _wide("branch7x7dbl_5", 192),
    )
    return _chain(_one("branch1x1", 192)), seven, twice, _chain(_one("branch_pool", 192))


def _e() -> tuple[Branch, ...]:
    three = (
        *_chain(_one("branch3x3_1", 384)),
        (_wide("branch3x3_2a", 384, 3), _high("branch3x3_2b", 384, 3)),
    )
    double = (
        *_chain(_one("branch3x3dbl_1", 448), _three("branch3x3dbl_2", 384)),
        (_wide("branch3x3dbl_3a", 384, 3), _high("branch3x3dbl_3b", 384, 3)),
    )
    return _chain(_one("branch1x1", 320)), three, double, _chain(_one("branch_pool", 192))


_B = (_chain(_three("branch3x3", 384, 2)), _double(2))
_D = (
    _chain(_one("branch3x3_1", 192), _three("branch3x3_2", 320, 2)),
    _chain(
        _one("branch7x7x3_1", 192),
        _wide("branch7x7x3_2", 192),
        _high("branch7x7x3_3", 192),
        _three("branch7x7x3_4", 192, 2),
    ),
)

STEM: dict[str, tuple[int, int, int, int]] = {
    "Conv2d_1a_3x3": (32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 3, 1, 0),
    "Conv2d_2b_3x3": (64, 3, 1, 1),
    "Conv2d_3b_1x1": (80, 1, 1, 0),
    "Conv2d_4a_3x3": (192, 3, 1, 0),
}
"""Name -> channels, kernel, stride, padding."""
POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")

BLOCKS: dict[str, tuple[tuple[Branch, ...], str]] = {
    "Mixed_5b": (_a(32), "average"),
    "Mixed_5c": (_a(64), "average"),
    "Mixed_5d": (_a(64), "average"),
    "Mixed_6a": (_B, "halved"),
    "Mixed_6b": (_c(128), "average"),
    "Mixed_6c": (_c(160), "average"),
    "Mixed_6d": (_c(160), "average"),
    "Mixed_6e": (_c(192), "average"),
    "Mixed_7a": (_D, "halved"),
    "Mixed_7b": (_e(), "average"),
    "Mixed_7c": (_e(), "maximum"),
}
"""Name -> branches, and what the pool does: before the last branch, or "halved", a branch of its own."""


class Unit(nn.Module):
    """A convolution without bias, its normalisation, and a rectifier."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side."""

    def __init__(self, channels: int, branches: tuple[Branch, ...], pool: str) -> None:
        super().__init__()
        self.branches, self.pool, self.out = branches, pool, channels if pool == "halved" else 0
        for branch in branches:
            width = channels
            for stage in branch:
                for name, out, (height, across), stride in stage:
                    padding = (0, 0) if stride == 2 else (height // 2, across // 2)
                    self.add_module(name, Unit(width, out, (height, across), stride, padding))
                width = sum(out for _, out, _, _ in stage)
            self.out += width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        pooled = {
            "average": lambda: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
            "maximum": lambda: F.max_pool2d(x, 3, 1, 1),
            "halved": lambda: F.max_pool2d(x, 3, 2),
        }[self.pool]()
        found = []
        for k, branch in enumerate(self.branches):
            last = self.pool != "halved" and k == len(self.branches) - 1
            y = pooled if last else x
            for stage in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, *_ in stage], 1)
            found.append(y)
        return torch.cat([*found, pooled] if self.pool == "halved" else found, 1)


class Inception(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, (out, kernel, stride, padding) in STEM.items():
            self.add_module(name, Unit(channels, out, (kernel, kernel), stride, (padding, padding)))
            channels = out
        for name, (branches, pool) in BLOCKS.items():
            block = Block(channels, branches, pool)
            self.add_module(name, block)
            channels = block.out

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2048)."""
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        for name in STEM:
            x = self.get_submodule(name)(x)
            x = F.max_pool2d(x, 3, 2) if name in POOLED_AFTER else x
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def load(path: Path) -> Inception:
    """The network with the weights of a file.

    Raises:
        ModelError: the file is missing, damaged, or of another network.
    """
    table = read_table(path)
    with torch.device("meta"):
        network = Inception()
    wanted = {name: x for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, x in wanted.items():
        if table.shapes.get(name) != tuple(x.shape):
            found = table.shapes.get(name, "absent")
            raise ModelError(f"{path} is not Inception v3 as FID uses it: {name} is {found}, not {tuple(x.shape)}")
    network = Inception()
    network.load_state_dict({name: table[name].float() for name in wanted}, strict=False)
    return network.requires_grad_(False).eval()

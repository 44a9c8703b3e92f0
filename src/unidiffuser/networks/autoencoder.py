"""A small convolutional autoencoder: a picture <-> a grid of a few channels, for diffusion in the latent grid.

A pixel-unshuffle by 4 begins and pixel-shuffles end it, so that nearly all arithmetic happens at 1/4 and 1/8 of the
resolution; one thin stage at 1/2 draws the crisp edges. Blocks are pre-activation residual blocks (arXiv 1603.05027)
with GroupNorm and SiLU.

It does not know its loss, files, or the scale that diffusion wants for the latents: see modalities/image.py.

    B batch · C picture channels · S size · f factor · c latent channels · w width
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn

UNSHUFFLE = 4
THIN = 2


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig:
    """The shape of an autoencoder."""

    size: int = 64
    """Side of the square picture, in pixels: a multiple of the factor."""
    channels: int = 3
    """Channels of the picture: 3 (RGB) or 1 (grey)."""
    latent_channels: int = 4
    """Channels of the latent grid."""
    factor: int = 8
    """Pixels a side of one latent cell: 4, 8, 16 or 32."""
    width: int = 64
    """Channels at a quarter of the resolution (a multiple of 16); every halving below doubles them, up to 4 times."""
    blocks: int = 2
    """Residual blocks per resolution."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"the {name} of an autoencoder is {value!r}; it must be a whole number")
        if self.factor not in (4, 8, 16, 32):
            raise ValueError(f"the factor of an autoencoder is {self.factor}; it must be 4, 8, 16 or 32")
        if not 0 < self.size <= 4096 or self.size % self.factor:
            raise ValueError(
                f"the size of an autoencoder is {self.size}; "
                f"it must be a multiple of its factor {self.factor}, at most 4096"
            )
        if self.channels not in (1, 3):
            raise ValueError(f"an autoencoder got {self.channels} picture channels; it takes 1 (grey) or 3 (RGB)")
        if not 0 < self.width <= 1024 or self.width % 16:
            raise ValueError(f"the width of an autoencoder is {self.width}; it must be a multiple of 16, at most 1024")
        if not 1 <= self.latent_channels <= 64 or not 1 <= self.blocks <= 16:
            raise ValueError(
                f"an autoencoder got {self.latent_channels} latent channels and {self.blocks} blocks; "
                "it takes 1 to 64 channels and 1 to 16 blocks"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, S/f, S/f) of the latent grid of one picture."""
        return (self.latent_channels, self.size // self.factor, self.size // self.factor)


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 8 channels a group."""
    return nn.GroupNorm(max(1, channels // 8), channels)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); it begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, w, H, W) -> (B, w, H, W)."""
        out: Tensor = self.layers(x)
        return x + out


class AutoEncoder(nn.Module):
    """Pictures (B, C, S, S) in [-1, 1] <-> latents (B, c, S/f, S/f)."""

    def __init__(self, config: AutoEncoderConfig) -> None:
        super().__init__()
        self.config = config
        w, halvings = config.width, int(log2(config.factor // UNSHUFFLE))
        widths = [w * min(2**level, 4) for level in range(halvings + 1)]
        thin = w // THIN

        def blocks(channels: int) -> list[nn.Module]:
            return [ResidualBlock(channels) for _ in range(config.blocks)]

        encoder: list[nn.Module] = [nn.PixelUnshuffle(UNSHUFFLE)]  # C, S  ->  16 C, S/4
        encoder += [nn.Conv2d(config.channels * UNSHUFFLE**2, w, 3, padding=1), *blocks(w)]  # w, S/4
        for shallow, deep in pairwise(widths):
            encoder += [nn.Conv2d(shallow, deep, 2, stride=2), *blocks(deep)]  # 2 w, S/8
        encoder += [norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.latent_channels, 1)]  # c, S/f
        self.encoder = nn.Sequential(*encoder)

        decoder: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1), *blocks(widths[-1])]
        for deep, shallow in pairwise(reversed(widths)):
            decoder += [nn.Conv2d(deep, 4 * shallow, 1), nn.PixelShuffle(2), *blocks(shallow)]  # w, S/4
        decoder += [norm(w), nn.SiLU(), nn.Conv2d(w, 4 * thin, 1), nn.PixelShuffle(2), ResidualBlock(thin)]  # w/2, S/2
        decoder += [norm(thin), nn.SiLU(), nn.Conv2d(thin, 4 * config.channels, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*decoder)  # C, S

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Let the encoder's last layer take over z -> (z - mean) / std, with mean and std (c,) of its latents."""
        last = self.encoder[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        last.weight.div_(std[:, None, None, None])
        last.bias.sub_(mean).div_(std)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, S, S) in [-1, 1] -> latents (B, c, S/f, S/f), of no fixed scale."""
        out: Tensor = self.encoder(pictures)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, c, S/f, S/f) -> pictures (B, C, S, S), near [-1, 1] but not clamped."""
        out: Tensor = self.decoder(latents)
        return out

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, S, S) -> their reconstruction."""
        return self.decode(self.encode(pictures))

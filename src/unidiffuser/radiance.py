"""A small radiance field and its differentiable renderer.

Density and colour lie on a cubic grid and are interpolated between its points. A ray through the cube is a sum over
samples, the nearest first (Mildenhall et al. 2020, arXiv 2003.08934, eq. 3):

    a_i = 1 - exp(-density_i * step),   w_i = a_i prod_{j<i} (1 - a_j),   pixel = sum w colour + (1 - sum w) ground

The ground behind the object has one colour, which is learnt too. The camera looks at the middle of the cube [-1, 1]^3
from a circle of latitude around it.

B views · S pixels a side · K samples a ray · R grid points a side.  It knows no model and no text.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The shape of a field and how it begins."""

    resolution: int = 32
    """Grid points a side, R."""
    density: float = 8.0
    """Density in the middle at the start; it falls to nothing at `radius`."""
    radius: float = 0.6
    """How large the ball is from which the object grows."""
    ground: float = 2.0
    """The logit of the colour behind it at the start: light, so that the object stands out as in a picture."""
    roughness: float = 0.3
    """Standard deviation of the noise on everything at the start: objects of different seeds begin differently."""

    def __post_init__(self) -> None:
        if not 4 <= self.resolution <= 256:
            raise ValueError(f"a field has from 4 to 256 grid points a side, not {self.resolution}")


class RadianceField(nn.Module):
    """Density and colour in the cube [-1, 1]^3, and the colour behind it."""

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        n = config.resolution
        axis = torch.linspace(-1, 1, n)
        distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt()
        ball = config.density * (1 - distance / config.radius)
        self.density = nn.Parameter(
            ball[None, None] + config.roughness * torch.randn(1, 1, n, n, n, generator=generator)
        )
        self.colour = nn.Parameter(config.roughness * torch.randn(1, 3, n, n, n, generator=generator))
        self.ground = nn.Parameter(config.ground + config.roughness * torch.randn(3, generator=generator))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (...,) and colour (..., 3) in [0, 1] at points (..., 3); nothing is outside the cube."""
        grid = torch.cat([self.density, self.colour], 1)  # (1, 4, R, R, R)
        places = points.reshape(1, 1, 1, -1, 3).flip(-1)  # grid_sample wants the last axis first
        values = F.grid_sample(grid, places, align_corners=True, padding_mode="border")[0, :, 0, 0].T
        density, colour = F.softplus(values[:, 0] - 1.0), torch.sigmoid(values[:, 1:])
        inside = (points.abs() <= 1).all(-1)
        return density.reshape(points.shape[:-1]) * inside, colour.reshape(points.shape)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera that looks at the middle."""

    distance: float = 4.0
    """From the middle, in half sides of the cube."""
    sight: float = 28.0
    """The angle of its field of view, in degrees: at 28 the picture is as wide as the cube."""

    def rays(self, azimuth: Tensor, elevation: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where rays start (B, 1, 1, 3), and their directions of unit length (B, S, S, 3), row by row from the top.

        Args:
            azimuth, elevation: (B,) in degrees; the third axis points up.
            size: S.
        """
        a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
        back = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)  # from the middle to the camera
        right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)
        up = torch.linalg.cross(back, right)
        reach = math.tan(math.radians(self.sight / 2))
        places = (torch.arange(size, device=azimuth.device) + 0.5) / size * 2 - 1
        v, u = torch.meshgrid(-places * reach, places * reach, indexing="ij")  # (S, S), v upwards
        looking = u[None, ..., None] * right[:, None, None] + v[None, ..., None] * up[:, None, None]
        direction = F.normalize(looking - back[:, None, None], dim=-1)
        return (self.distance * back)[:, None, None], direction


def render(
    field: RadianceField,
    camera: Camera,
    azimuth: Tensor,
    elevation: Tensor,
    size: int,
    *,
    samples: int = 48,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures of an object.

    Args:
        azimuth, elevation: (B,) in degrees.
        size: pixels a side, S.
        samples: along each ray, K.
        generator: shifts the samples of each view at random by up to a step; None: they lie in the middle of theirs.

    Returns:
        Pixels (B, 3, S, S) in [-1, 1], and how opaque the object is there, (B, 1, S, S) in [0, 1].
    """
    start, direction = camera.rays(azimuth, elevation, size)
    near, far = camera.distance - math.sqrt(3.0), camera.distance + math.sqrt(3.0)
    step = (far - near) / samples
    shift = torch.full((len(azimuth), 1, 1, 1), 0.5)
    if generator is not None:
        shift = torch.rand(shift.shape, generator=generator)
    depth = near + step * (torch.arange(samples, device=azimuth.device) + shift.to(azimuth.device))  # (B, 1, 1, K)
    points = start[..., None, :] + depth[..., None] * direction[..., None, :]  # (B, S, S, K, 3)
    density, colour = field(points)
    free = torch.exp(-density * step)  # (B, S, S, K)
    passed = torch.cat([torch.ones_like(free[..., :1]), free[..., :-1]], -1).cumprod(-1)
    weight = passed * (1 - free)
    opaque = weight.sum(-1)
    pixels = (weight[..., None] * colour).sum(-2) + (1 - opaque)[..., None] * torch.sigmoid(field.ground)
    return 2 * pixels.permute(0, 3, 1, 2) - 1, opaque[:, None]

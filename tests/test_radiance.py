"""The renderer against closed forms: a ball's shadow, Beer's law, colours, and gradients by finite differences."""

import math

import pytest
import torch
from torch import Tensor

from unidiffuser.radiance import Camera, FieldConfig, RadianceField, render


def blank(resolution: int = 33) -> RadianceField:
    """Empty space before black."""
    field = RadianceField(FieldConfig(resolution=resolution), torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.density.fill_(-60.0)
        field.colour.fill_(0.0)
        field.ground.fill_(-60.0)
    return field


def ball(radius: float, density: float = 60.0, resolution: int = 65) -> RadianceField:
    field = blank(resolution)
    axis = torch.linspace(-1, 1, resolution)
    inside = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt() < radius
    with torch.no_grad():
        field.density[0, 0, inside] = density
    return field


def looking(*azimuths: float, elevation: float = 0.0) -> tuple[Tensor, Tensor]:
    return torch.tensor(azimuths), torch.full((len(azimuths),), elevation)


@torch.no_grad()
def test_a_ball_is_a_disc_of_the_right_size_from_everywhere() -> None:
    camera, radius = Camera(), 0.5
    for elevation in (-30.0, 0.0, 55.0):
        _, opaque = render(ball(radius), camera, *looking(0.0, 70.0, 190.0, elevation=elevation), 64, samples=96)
        # A ball at distance d is seen under the angle asin(r / d).
        seen = math.tan(math.asin(radius / camera.distance)) / math.tan(math.radians(camera.sight / 2)) * 32
        area = opaque.sum((1, 2, 3))
        assert area.tolist() == pytest.approx([math.pi * seen**2] * 3, rel=0.05)


@torch.no_grad()
def test_light_fades_by_beers_law() -> None:
    """Through a slab of constant density the object lets exp(-density * thickness) pass."""
    field = blank()
    with torch.no_grad():
        field.density.fill_(math.log(math.expm1(0.4)) + 1.0)  # softplus gives 0.4 everywhere in the cube
    _, opaque = render(field, Camera(sight=2.0), *looking(0.0), 1, samples=2000)
    assert opaque.item() == pytest.approx(1 - math.exp(-0.4 * 2.0), rel=2e-3)


@torch.no_grad()
def test_colours_and_the_ground() -> None:
    field = ball(0.5)
    field.colour[:, 0].fill_(60.0)
    field.colour[:, 1:].fill_(-60.0)
    field.ground.copy_(torch.tensor([-60.0, 60.0, 60.0]))
    pixels, _ = render(field, Camera(), *looking(30.0), 32, samples=96)
    torch.testing.assert_close(pixels[0, :, 16, 16], torch.tensor([1.0, -1.0, -1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, 1.0]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_up_is_up_and_turning_moves_things_the_right_way() -> None:
    field = blank(33)
    field.density[0, 0, 24:28, 14:19, 24:28] = 60.0  # at x = 0.6, y = 0, z = 0.6
    camera = Camera()

    def centre(azimuth: float) -> tuple[float, float]:
        _, opaque = render(field, camera, *looking(azimuth), 64)
        rows, columns = opaque[0, 0].sum(1), opaque[0, 0].sum(0)
        places = torch.arange(64.0)
        return float((rows * places).sum() / rows.sum()), float((columns * places).sum() / columns.sum())

    row, column = centre(0.0)
    assert row < 20 and column == pytest.approx(31.5, abs=0.5)  # before us, above the middle
    assert centre(90.0)[1] < 20 or centre(90.0)[1] > 44
    assert centre(90.0)[1] + centre(-90.0)[1] == pytest.approx(63.0, abs=0.5)
    # From azimuth 90 the camera stands on the second axis and looks back along it: the first axis points to the left.
    assert centre(90.0)[1] < 20


def test_gradients_reach_all_there_is() -> None:
    field = RadianceField(FieldConfig(resolution=6), torch.Generator().manual_seed(1)).double()
    camera, target = Camera(), torch.Generator().manual_seed(2)
    goal = torch.randn(2, 3, 8, 8, generator=target, dtype=torch.float64)
    views = tuple(x.double() for x in looking(10.0, 130.0, elevation=20.0))

    def loss() -> Tensor:
        pixels, opaque = render(field, camera, *views, 8, samples=12)
        return (pixels * goal).sum() + opaque.square().sum()

    loss().backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        with torch.no_grad():
            ends = []
            for h in (1e-5, -2e-5):
                parameter.view(-1)[place] += h
                ends.append(loss().item())
            parameter.view(-1)[place] += 1e-5
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(parameter.grad.view(-1)[place].item(), rel=1e-4)


def test_seeds_begin_differently_and_nonsense_is_refused() -> None:
    a, b = (RadianceField(FieldConfig(), torch.Generator().manual_seed(k)) for k in (1, 2))
    assert not torch.equal(a.density, b.density)
    with pytest.raises(ValueError, match="grid points"):
        FieldConfig(resolution=2)

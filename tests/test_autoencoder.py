"""The autoencoder's shapes, that it can learn a picture, and what its config refuses."""

import pytest
import torch

from unidiffuser.networks.autoencoder import AutoEncoder, AutoEncoderConfig

TINY = AutoEncoderConfig(size=32, width=16, blocks=1)


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(factor: int, channels: int) -> None:
    config = AutoEncoderConfig(size=32, channels=channels, latent_channels=5, factor=factor, width=16, blocks=1)
    net = AutoEncoder(config)
    pictures = torch.rand(2, channels, 32, 32)
    assert net.encode(pictures).shape == (2, *config.latent_shape) == (2, 5, 32 // factor, 32 // factor)
    assert net(pictures).shape == pictures.shape


def test_it_learns_a_few_pictures_and_every_weight_takes_part() -> None:
    torch.manual_seed(0)
    net = AutoEncoder(TINY)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), 32) * 2 - 1
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        loss = (net(pictures) - pictures).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * pictures.var()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())


@pytest.mark.parametrize(
    "wrong", [{"factor": 3}, {"size": 60}, {"channels": 2}, {"width": 10}, {"blocks": 10**6}, {"size": "64"}]
)
def test_config_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="autoencoder"):
        AutoEncoderConfig(**wrong)

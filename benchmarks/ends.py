"""Does it matter that training reaches the exact ends t = 0 and t = 1? Measured where the truth is known.

    python benchmarks/ends.py

A small MLP learns a three-component mixture of two modalities, with a share `ends` of the timesteps at each exact end.
What is printed is how far its denoiser is from the exact one, E |D - D_exact|^2, at the timesteps that sampling uses
(the other modality given, t = 0, or ignored, t = 1) and inside the square, over five seeds: mean and standard error.
"""

import argparse
import statistics
import sys

import torch

from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.joint import Joint
from unidiffuser.losses import Objective, denoising_loss
from unidiffuser.mixture import GaussianMixture
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.process import RectifiedFlow

STREAMS = {"a": (2,), "b": (2,)}
PLACES = {"other given (0)": 0.0, "other ignored (1)": 1.0, "inside": None}


def world() -> GaussianMixture:
    """Three components that pair the two modalities."""
    a = torch.tensor([[-1.4, 0.3], [0.2, -1.2], [1.2, 0.9]])
    b = torch.tensor([[1.0, 1.0], [-1.3, 0.4], [0.3, -1.4]])
    spread = torch.full((3, 2), 0.3)
    weights = torch.tensor([0.3, 0.3, 0.4])
    return GaussianMixture(
        process=RectifiedFlow(), weights=weights, means={"a": a, "b": b}, stds={"a": spread, "b": spread}
    )


def errors(ends: float, seed: int, steps: int) -> dict[str, float]:
    """Train with this share of exact ends and compare with the exact denoiser."""
    torch.manual_seed(seed)
    truth, process = world(), RectifiedFlow()
    network = MLP(MLPConfig(streams=STREAMS, dim=64, depth=2))
    objective = Objective(process=process, prediction="v", space="v", ends=ends)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        x0 = {s: x.float() for s, x in truth.sample(512, draws).items()}
        denoising_loss(objective, network, x0, draws)[0].backward()
        optimiser.step()
        optimiser.zero_grad()
    return {place: _error(NetworkDenoiser(network, process, "v"), truth, other) for place, other in PLACES.items()}


@torch.no_grad()
def _error(denoiser: NetworkDenoiser, truth: GaussianMixture, other: float | None, n: int = 20_000) -> float:
    """E |D_a - exact|^2 with a at uniform timesteps and b at `other` (None: uniform)."""
    g = torch.Generator().manual_seed(99)
    x0 = {s: x.float() for s, x in truth.sample(n, g).items()}
    t = {"a": torch.rand(n, generator=g), "b": torch.rand(n, generator=g) if other is None else torch.full((n,), other)}
    xt: Joint = {s: denoiser.process.add_noise(x, torch.randn(x.shape, generator=g), t[s]) for s, x in x0.items()}
    return (denoiser(xt, t)["a"] - truth(xt, t)["a"]).square().sum(1).mean().item()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'ends':>6}  " + "  ".join(f"{place:>22}" for place in PLACES))
    for ends in (0.0, 0.02, 0.1, 0.25):
        runs = [errors(ends, seed, args.steps) for seed in range(args.seeds)]
        cells = []
        for place in PLACES:
            values = [run[place] for run in runs]
            cells.append(f"{statistics.mean(values):.5f} ± {statistics.stdev(values) / len(values) ** 0.5:.5f}")
        print(f"{ends:>6}  " + "  ".join(f"{cell:>22}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

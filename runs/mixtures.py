"""Every divergence taken to its minimum where the minimum is known: one Gaussian as the student of two.

    python runs/mixtures.py         a minute on one core; writes runs/mixtures.json and docs/one-step.png

The teacher is a mixture of two Gaussians over two numbers, the student N(m, diag(s^2)): it cannot have the teacher's
law, so what it becomes is a matter of the divergence. The truth is D_f(q || p) by quadrature on a grid, minimised by
L-BFGS. The student is taught by `instruct`, from draws of noise alone, with both clean estimates and the ratio in
closed form: what is tested is the gradient, and nothing else can be blamed. "Detached" is the same without the gradient
of the ratio weight, as the released code of the paper has it.

Both begin at the same place: the best of three starts, the teacher's moments and each of its modes.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unidiffuser.divergences import DIVERGENCES, find, ratio_weights
from unidiffuser.instruct import Method, divergence_loss, draw_levels, level_weight
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Cosine

ROOT = Path(__file__).parents[1]
PROCESS = Cosine()
WEIGHTS, MEANS, STDS = [0.62, 0.38], [[-0.8, -0.4], [0.9, 0.5]], [[0.4, 0.55], [0.45, 0.35]]
EXACT = Method(divergence="reverse-kl", weight="likelihood", bounds=(1e-12, 1e12), low=0.01, high=0.99)
REACH, CELLS = 4.0, 240
STEPS, BATCH, RATE = 1000, 1024, 0.04


def law(weights: list[float] | Tensor, means: Tensor, stds: Tensor) -> GaussianMixture:
    """A mixture over the stream "x" of two numbers."""
    return GaussianMixture(process=PROCESS, weights=torch.as_tensor(weights), means={"x": means}, stds={"x": stds})


TEACHER = law(WEIGHTS, torch.tensor(MEANS), torch.tensor(STDS))


def student(theta: Tensor) -> GaussianMixture:
    """theta: m (2), log s (2)."""
    return law([1.0], theta[:2][None], theta[2:].exp()[None])


def grid() -> tuple[Tensor, float]:
    """The centres of all cells, (CELLS^2, 2), and the area of one."""
    axis = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS * 2 * REACH - REACH
    return torch.cartesian_prod(axis, axis), (2 * REACH / CELLS) ** 2


def divergence(name: str, theta: Tensor) -> Tensor:
    """D_f(q || p) by the midpoint rule."""
    x, area = grid()
    clean = {"x": torch.zeros(len(x), dtype=torch.float64)}
    log_q, log_p = (mix.log_prob({"x": x}, clean) for mix in (TEACHER, student(theta)))
    # Far out both laws are 0 to rounding; the ratio there is held where p f(r) still is a number.
    log_r = (log_q - log_p).clamp(-300.0, 300.0)
    return (log_p.exp() * find(name).f(log_r.exp())).nan_to_num(posinf=1e30).sum() * area


def starts() -> list[Tensor]:
    """The teacher's moments, and each of its modes."""
    w, mean, std = TEACHER.weights[:, None], TEACHER.means["x"], TEACHER.stds["x"]
    centre = (w * mean).sum(0)
    spread = ((w * (std.square() + mean.square())).sum(0) - centre.square()).sqrt()
    return [torch.cat([m, s.log()]) for m, s in ((centre, spread), *zip(mean, std, strict=True))]


def minimise(name: str, start: Tensor) -> tuple[Tensor, float]:
    """The minimum of the divergence near a start, and its value."""
    theta = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=80, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = divergence(name, theta)
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    found = theta.detach()
    return found, divergence(name, found).item()


def teach(method: Method, start: Tensor, seed: int = 0) -> Tensor:
    """Where the student comes to rest, the mean of the last fifth of its steps."""
    g = torch.Generator().manual_seed(seed)
    theta = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=RATE, betas=(0.9, 0.999))
    kept = []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, 2.0 * (1 - step / STEPS)) + 1e-4
        z, eps = torch.randn(2, BATCH, 2, generator=g, dtype=torch.float64)
        z, eps = torch.cat([z, -z]), torch.cat([eps, -eps])
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=g, dtype=torch.float64)) / BATCH  # stratified
        t = draw_levels(method, PROCESS, u).repeat(2)
        x0 = theta[:2] + theta[2:].exp() * z
        xt, levels, now = {"x": PROCESS.add_noise(x0, eps, t)}, {"x": t}, student(theta.detach())
        ratio = ratio_weights(
            find(method.divergence), TEACHER.log_prob(xt, levels) - now.log_prob(xt, levels), method.bounds
        )
        omega = {"x": level_weight(method, PROCESS, t)}
        clean = TEACHER(xt, levels), now(xt, levels)
        loss = divergence_loss(method, PROCESS, {"x": x0}, xt, levels, *clean, ratio, omega).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([theta], 10.0)
        optimiser.step()
        if step >= 0.8 * STEPS:
            kept.append(theta.detach().clone())
    return torch.stack(kept).mean(0)


def rows() -> list[dict[str, object]]:
    """A row a divergence: the exact minimum, what was reached, and how much divergence is left above the minimum."""
    found = []
    for name in DIVERGENCES:
        start, (minimum, lowest) = min(
            ((start, minimise(name, start)) for start in starts()), key=lambda pair: pair[1][1]
        )
        row: dict[str, object] = {"divergence": name, "minimum": shown(minimum), "at_minimum": round(lowest, 5)}
        for title, method in (("reached", EXACT), ("detached", replace(EXACT, ratio_gradient=False))):
            theta = teach(replace(method, divergence=name), start)
            row |= {title: shown(theta), f"{title}_off": round(off(theta, minimum), 4)}
            row[f"{title}_excess"] = round(divergence(name, theta).item() / lowest - 1, 5)
        found.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
    return found


def shown(theta: Tensor) -> list[float]:
    """m and s, rounded."""
    return [round(x, 4) for x in [*theta[:2].tolist(), *theta[2:].exp().tolist()]]


def off(theta: Tensor, minimum: Tensor) -> float:
    """The largest error of m and s."""
    return max(abs(a - b) for a, b in zip(shown(theta), shown(minimum), strict=True))


PANEL, SCALE = 168, 42
"""Pixels of a panel, and of a unit."""


def picture(found: list[dict[str, object]]) -> Image.Image:
    """A panel a divergence: the teacher's density, the student's ellipses of 1 and 2 standard deviations."""
    across = 4
    down = math.ceil(len(found) / across)
    sheet = Image.new("RGB", (across * PANEL, down * (PANEL + 16)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    density = _density()
    for k, row in enumerate(found):
        left, top = k % across * PANEL, k // across * (PANEL + 16)
        sheet.paste(density, (left, top + 16))
        draw.text((left + 4, top + 2), str(row["divergence"]), "black", font)
        for values, colour, width in ((row["detached"], "#d98c00", 1), (row["reached"], "#1557b0", 2)):
            _ellipses(draw, values, (left + PANEL / 2, top + 16 + PANEL / 2), colour, width)
        draw.rectangle((left, top + 16, left + PANEL - 1, top + 15 + PANEL), outline="#cccccc")
    return sheet.quantize(64)


def _density() -> Image.Image:
    axis = (torch.arange(PANEL, dtype=torch.float64) + 0.5 - PANEL / 2) / SCALE
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2)
    p = TEACHER.log_prob({"x": points}, {"x": torch.zeros(len(points), dtype=torch.float64)}).exp()
    grey = (255 - 130 * (p / p.max()).sqrt()).round().to(torch.uint8).reshape(PANEL, PANEL)
    return Image.fromarray(grey.numpy()).convert("RGB")


def _ellipses(draw: ImageDraw.ImageDraw, values: object, centre: tuple[float, float], colour: str, width: int) -> None:
    assert isinstance(values, list)
    x, y = centre[0] + SCALE * values[0], centre[1] - SCALE * values[1]
    for size in (1, 2):
        a, b = SCALE * size * values[2], SCALE * size * values[3]
        draw.ellipse((x - a, y - b, x + a, y + b), outline=colour, width=width)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT, help="where runs/ and docs/ lie")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = rows()
    (args.out / "runs/mixtures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    picture(found).save(args.out / "docs/one-step.png", optimize=True)


if __name__ == "__main__":
    main()

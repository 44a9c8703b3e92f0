"""The sampler of the released UniDiffuser, stated again from its papers: an independent truth for whole samples.

    levels     Stable Diffusion's scaled-linear betas, log alpha linear between the knots t = n / 1000
    solver     DPM-Solver++ in its single-step form, clean predictions, groups of third order (Lu et al. 2022,
               arXiv 2211.01095), nodes uniform in time from 1 to 1/1000
    guidance   (1 + s) eps(full) - s eps(weak), the weak one given nothing but noise at t = 1

The network is diffusers' own; timesteps are given to it as n = 1000 t. Noise is taken from the calls of our network,
which are recorded, so that both walk the same way. States are flat: [latent, clip], [text], or all three.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from released_model import Formats
from torch import Tensor, nn

BETA = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
LOG_ALPHA = 0.5 * torch.log(1 - BETA).cumsum(0)
Noise = Callable[[Tensor, float, int], Tensor]
"""(x_t, t, call) -> predicted noise."""


class Call(NamedTuple):
    """What our network was given once."""

    xt: Mapping[str, Tensor]
    t: Mapping[str, Tensor]
    label: Tensor | None
    wanted: Any

    def rows(self, stream: str, branch: int, batch: int) -> Tensor:
        """The rows of one branch of guidance: 0 is the full one."""
        return self.xt[stream][branch * batch : (branch + 1) * batch]


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Call]]:
    """The calls of a network inside."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        xt, t, label, wanted = args
        calls.append(Call({s: x.clone() for s, x in xt.items()}, {m: x.clone() for m, x in t.items()}, label, wanted))

    handle = network.register_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def level(t: float) -> tuple[float, float, float]:
    """(alpha, sigma, lambda) at a time in [1/1000, 1]."""
    place = t * 1000 - 1
    low = min(max(int(place), 0), 998)
    log_alpha = LOG_ALPHA[low] + (place - low) * (LOG_ALPHA[low + 1] - LOG_ALPHA[low])
    alpha = log_alpha.exp()
    sigma = (1 - alpha**2).sqrt()
    return float(alpha), float(sigma), float((alpha / sigma).log())


def orders(steps: int) -> list[int]:
    """The orders of the groups that spend exactly this many evaluations."""
    thirds, rest = divmod(steps, 3)
    return {0: [3] * (thirds - 1) + [2, 1], 1: [3] * thirds + [1], 2: [3] * thirds + [2]}[rest]


def solve(noise: Noise, x: Tensor, steps: int) -> Tensor:
    """From x at t = 1 to t = 1/1000."""
    times = torch.linspace(1.0, 0.001, steps + 1, dtype=torch.float64).tolist()
    call = 0

    def clean(x: Tensor, t: float) -> Tensor:
        nonlocal call
        alpha, sigma, _ = level(t)
        x0 = (x - sigma * noise(x, t, call)) / alpha
        call += 1
        return x0

    for order in orders(steps):
        nodes = times[call : call + order + 1]
        x = _group(clean, x, nodes)
    return x


def _group(clean: Callable[[Tensor, float], Tensor], x: Tensor, nodes: list[float]) -> Tensor:
    """One step of order 1, 2 or 3 over these nodes (DPM-Solver++, appendix A)."""
    (_, sigma, start), (alpha_t, sigma_t, end) = level(nodes[0]), level(nodes[-1])
    h = torch.tensor(end - start, dtype=torch.float64)
    d_0 = clean(x, nodes[0])
    phi_1 = float(torch.expm1(-h))
    base = sigma_t / sigma * x - alpha_t * phi_1 * d_0
    if len(nodes) == 2:
        return base
    alpha_1, sigma_1, lambda_1 = level(nodes[1])
    r_1 = (lambda_1 - start) / float(h)
    d_1 = clean(sigma_1 / sigma * x - alpha_1 * float(torch.expm1(-r_1 * h)) * d_0, nodes[1])
    if len(nodes) == 3:
        return base - 0.5 / r_1 * alpha_t * phi_1 * (d_1 - d_0)
    alpha_2, sigma_2, lambda_2 = level(nodes[2])
    r_2 = (lambda_2 - start) / float(h)
    phi_12 = float(torch.expm1(-r_2 * h))
    phi_22 = phi_12 / (r_2 * float(h)) + 1
    x_2 = sigma_2 / sigma * x - alpha_2 * phi_12 * d_0 + r_2 / r_1 * alpha_2 * phi_22 * (d_1 - d_0)
    d_2 = clean(x_2, nodes[2])
    return base + (phi_1 / float(h) + 1) / r_2 * alpha_t * (d_2 - d_0)


class Original:
    """The released model's tasks, each as the original computes it; n rows at once."""

    def __init__(self, unet: Any, shapes: Mapping[str, tuple[int, ...]], calls: list[Call], n: int, scale: float):
        self.unet, self.shapes, self.calls, self.n, self.scale = unet, shapes, calls, n, scale

    def network(self, z: Tensor, c: Tensor, y: Tensor, t_image: float, t_text: float) -> tuple[Tensor, Tensor, Tensor]:
        n_image, n_text = torch.tensor(1000 * t_image), torch.tensor(1000 * t_text)
        return self.unet(z.float(), c.float(), y.float(), n_image, n_text, data_type=1)

    def noise(self, call: int, branch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The noise that our network was given in one branch of one call."""
        z, c, y = (self.calls[call].rows(s, branch, self.n) for s in ("image.latent", "image.clip", "text"))
        return z, c, y

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[latent, clip] apart."""
        size = torch.Size(self.shapes["image.latent"]).numel()
        latent, clip = x[:, :size], x[:, size:]
        return latent.unflatten(1, self.shapes["image.latent"]), clip.unflatten(1, self.shapes["image.clip"])

    def image_given_text(self, text: Tensor) -> Noise:
        def noise(x: Tensor, t: float, call: int) -> Tensor:
            z, c = self.split(x)
            full = flat(*self.network(z, c, text, t, 0.0)[:2])
            weak = flat(*self.network(z, c, self.noise(call, 1)[2], t, 1.0)[:2])
            return (1 + self.scale) * full - self.scale * weak

        return noise

    def text_given_image(self, z: Tensor, c: Tensor) -> Noise:
        def noise(x: Tensor, t: float, call: int) -> Tensor:
            y = x.unflatten(1, self.shapes["text"])
            full = self.network(z, c, y, 0.0, t)[2].flatten(1)
            weak = self.network(*self.noise(call, 1)[:2], y, 1.0, t)[2].flatten(1)
            return (1 + self.scale) * full - self.scale * weak

        return noise

    def joint(self, x: Tensor, t: float, call: int) -> Tensor:
        size = x.shape[1] - torch.Size(self.shapes["text"]).numel()
        (z, c), y = self.split(x[:, :size]), x[:, size:].unflatten(1, self.shapes["text"])
        full = flat(*self.network(z, c, y, t, t))
        weak_image = self.network(z, c, self.noise(call, 1)[2], t, 1.0)[:2]
        weak_text = self.network(*self.noise(call, 2)[:2], y, 1.0, t)[2]
        return (1 + self.scale) * full - self.scale * flat(*weak_image, weak_text)

    def image(self, x: Tensor, t: float, call: int) -> Tensor:
        return flat(*self.network(*self.split(x), self.noise(call, 0)[2], t, 1.0)[:2])

    def text(self, x: Tensor, t: float, call: int) -> Tensor:
        y = x.unflatten(1, self.shapes["text"])
        return self.network(*self.noise(call, 0)[:2], y, 1.0, t)[2].flatten(1)


def flat(*streams: Tensor) -> Tensor:
    """Streams side by side, (B, ...)."""
    return torch.cat([x.flatten(1) for x in streams], 1)


def photo(width: int = 200, height: int = 150, seed: int = 0) -> PIL.Image.Image:
    """A picture of soft colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def words(formats: Formats, latents: Tensor) -> list[str]:
    """The captions that the libraries write for text latents."""
    tokenizer = formats.source.text_tokenizer
    rows, lengths = formats.source.text_decoder.generate_captions(latents, tokenizer.eos_token_id, "cpu")
    cut = [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]
    return [" ".join(tokenizer.decode([k for k in row if k != tokenizer.eos_token_id]).split()) for row in cut]


def encoded(formats: Formats, sentence: str) -> Tensor:
    """The text latent that the libraries make of a sentence, (1, 77, D)."""
    source = formats.source
    tokens = source.clip_tokenizer(sentence, padding="max_length", max_length=77, return_tensors="pt").input_ids
    latent: Tensor = source.text_decoder.encode(source.text_encoder(tokens).last_hidden_state)
    return latent

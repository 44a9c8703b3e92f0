"""f-divergences: how far a student's law p is from a teacher's law q, one row each.

    D_f(q || p) = E_p[ f(r) ],   r = q / p,   f convex, f(1) = 0

Along the noising process (Uni-Instruct, arXiv 2505.20755) the divergence falls, and how fast depends on f through one
function alone, with s the scores and lambda = log(alpha / sigma):

    D_f(q_0 || p_0) - D_f(q_T || p_T) = int E_p[ psi(r) sigma^2 ||s_p - s_q||^2 ] d(-lambda),   psi(r) = r^2 f''(r)

Training needs psi and its two derivatives (see `instruct`). A row of the table holds all four functions of r.

Large ratios are clipped. That is still an f-divergence: the one with psi constant beyond the bounds, hence with f''
proportional to 1 / r^2 there, as for the reverse KL. It is finite where chi-square, say, is not.

This file knows nothing of networks, noise or training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

MAX_POWER = 8.0


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A row of the table: functions of the ratio r = teacher / student > 0, of any shape."""

    f: Function
    """D_f(q || p) = E_p[f(q / p)]."""
    psi: Function
    """r^2 f''(r): the weight of the squared score difference."""
    psi_1: Function
    """r psi'(r)."""
    psi_2: Function
    """r^2 psi''(r)."""
    needs_ratio: bool = True
    """Whether psi depends on r; if not, no ratio need be known, and so no real data."""


@dataclass(frozen=True)
class RatioWeights:
    """What the loss needs of a divergence at B samples; each (B,), without gradient."""

    psi: Tensor
    psi_1: Tensor
    psi_2: Tensor
    clipped: Tensor
    """Where the ratio was out of bounds, bool."""

    @property
    def flow(self) -> Tensor:
        """psi - r psi', of the Flow-Generator-Matching term."""
        return self.psi - self.psi_1


def ratio_weights(divergence: Divergence, log_ratio: Tensor, bounds: tuple[float, float]) -> RatioWeights:
    """The weights at ratios r = exp(log_ratio), held between two bounds.

    Beyond a bound psi is constant, so that its derivatives are 0 there. A log ratio that is not a number counts as 0,
    and as clipped.

    Args:
        divergence: a row of the table.
        log_ratio: log q(x_t) - log p(x_t), (B,).
        bounds: the smallest and the largest ratio, 0 < low < high.

    Raises:
        ValueError: bounds that are none.
    """
    low, high = bounds
    if not 0 < low < high:
        raise ValueError(f"a ratio is held between two bounds 0 < low < high, not {low} and {high}")
    wild = log_ratio.isnan()
    r = log_ratio.detach().masked_fill(wild, 0.0).exp()
    clipped = wild | (r < low) | (r > high)
    r = r.clamp(low, high)
    psi, psi_1, psi_2 = (column(r) for column in (divergence.psi, divergence.psi_1, divergence.psi_2))
    return RatioWeights(psi, psi_1.masked_fill(clipped, 0.0), psi_2.masked_fill(clipped, 0.0), clipped)


def find(name: str) -> Divergence:
    """A row by name, or a member of the power family: "power:A" with f''(r) = r^(A - 2).

    Raises:
        ValueError: there is no such divergence.
    """
    if name in DIVERGENCES:
        return DIVERGENCES[name]
    family, _, exponent = name.partition(":")
    try:
        a = float(exponent) if family == "power" else None
    except ValueError:
        a = None
    if a is None or not -MAX_POWER <= a <= MAX_POWER:
        raise ValueError(
            f"there is no divergence {name!r}; there are {', '.join(DIVERGENCES)}, and power:A "
            f"with a number A from -{MAX_POWER:g} to {MAX_POWER:g}"
        )
    return power(a)


def power(a: float) -> Divergence:
    """f''(r) = r^(a - 2): a = 0 is the reverse KL, 1 the forward KL, 2 half of Pearson's chi-square, -1 half of
    Neyman's, 1/2 twice the squared Hellinger distance.
    """
    if a == 0:
        return DIVERGENCES["reverse-kl"]
    if a == 1:
        return DIVERGENCES["forward-kl"]
    return Divergence(
        f=lambda r: (r**a - 1.0 - a * (r - 1.0)) / (a * (a - 1.0)),
        psi=lambda r: r**a,
        psi_1=lambda r: a * r**a,
        psi_2=lambda r: a * (a - 1.0) * r**a,
    )


DIVERGENCES: dict[str, Divergence] = {
    "reverse-kl": Divergence(  # KL(p || q)
        f=lambda r: -torch.log(r),
        psi=torch.ones_like,
        psi_1=torch.zeros_like,
        psi_2=torch.zeros_like,
        needs_ratio=False,
    ),
    "forward-kl": Divergence(  # KL(q || p)
        f=lambda r: r * torch.log(r),
        psi=lambda r: r,
        psi_1=lambda r: r,
        psi_2=torch.zeros_like,
    ),
    "jeffreys": Divergence(  # KL(q || p) + KL(p || q)
        f=lambda r: (r - 1.0) * torch.log(r),
        psi=lambda r: 1.0 + r,
        psi_1=lambda r: r,
        psi_2=torch.zeros_like,
    ),
    "jkl": Divergence(  # 0.4 KL(q || p) + 0.6 KL(p || q), the mixture of the authors' code
        f=lambda r: (0.4 * r - 0.6) * torch.log(r),
        psi=lambda r: 0.4 * r + 0.6,
        psi_1=lambda r: 0.4 * r,
        psi_2=torch.zeros_like,
    ),
    "jensen-shannon": Divergence(  # twice the Jensen-Shannon divergence
        f=lambda r: r * torch.log(r) - (r + 1.0) * torch.log((r + 1.0) / 2.0),
        psi=lambda r: r / (1.0 + r),
        psi_1=lambda r: r / (1.0 + r) ** 2,
        psi_2=lambda r: -2.0 * r**2 / (1.0 + r) ** 3,
    ),
    "pearson": Divergence(  # chi-square of q from p
        f=lambda r: (r - 1.0) ** 2,
        psi=lambda r: 2.0 * r**2,
        psi_1=lambda r: 4.0 * r**2,
        psi_2=lambda r: 4.0 * r**2,
    ),
    "neyman": Divergence(  # chi-square of p from q
        f=lambda r: (1.0 - r) ** 2 / r,
        psi=lambda r: 2.0 / r,
        psi_1=lambda r: -2.0 / r,
        psi_2=lambda r: 4.0 / r,
    ),
    "hellinger": Divergence(  # int (sqrt q - sqrt p)^2
        f=lambda r: (torch.sqrt(r) - 1.0) ** 2,
        psi=lambda r: 0.5 * torch.sqrt(r),
        psi_1=lambda r: 0.25 * torch.sqrt(r),
        psi_2=lambda r: -0.125 * torch.sqrt(r),
    ),
    "le-cam": Divergence(
        f=lambda r: (r - 1.0) ** 2 / (2.0 * (r + 1.0)),
        psi=lambda r: 4.0 * r**2 / (r + 1.0) ** 3,
        psi_1=lambda r: 4.0 * r**2 * (2.0 - r) / (r + 1.0) ** 4,
        psi_2=lambda r: 8.0 * r**2 * (r**2 - 4.0 * r + 1.0) / (r + 1.0) ** 5,
    ),
    "softened-reverse-kl": Divergence(  # 2 KL((p + q) / 2 || q), f-distill's
        f=lambda r: (r + 1.0) * torch.log((r + 1.0) / (2.0 * r)),
        psi=lambda r: 1.0 / (1.0 + r),
        psi_1=lambda r: -r / (1.0 + r) ** 2,
        psi_2=lambda r: 2.0 * r**2 / (1.0 + r) ** 3,
    ),
}
"""Every divergence by name."""

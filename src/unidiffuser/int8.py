"""Linear layers in 8-bit integers: weights rounded once, inputs rounded when they come, each token by itself.

    y_n = s (w_n sum_k q_k r_nk) + b_n        x_k ~ s q_k,     s = max_k |x_k| / 126.5
                                              W_nk ~ w_n r_nk, w_n = max_k |W_nk| / 126.5

(Dettmers et al. 2022, arXiv 2208.07339, without its outliers.) The sums are of integers and exact, so that a token
comes out the same in any batch. The products are oneDNN's, through the operators that torch.compile itself puts in the
place of quantised linear layers.

This file knows no network and no file.
"""

import torch
from torch import Tensor, nn

LEVELS = 126.5
"""Of the largest number. Not 127: in bfloat16 s may come out 0.4 % too small, and 128 would wrap around to -128."""
ZERO = 128
"""Added to q: the instructions multiply numbers without a sign by numbers with one, and oneDNN takes it off again."""
NEEDED = ("avx512_vnni", "avx512_bf16")
"""Of the processor. AMX has all that these have."""
LEAST_SCALE = 1e-30
"""Of a token or row of zeros, which any scale would do for."""
TILE = 2**19
"""Numbers that are rounded at a time: as many as stay in a core's cache from one pass to the next."""


class Int8Linear(nn.Linear):
    """A linear layer that holds its weight as packed 8-bit integers; it passes no gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """weight: (out, in). bias: (out,). dtype: of the inputs and outputs, bfloat16 or float32."""
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = self.bias = None  # type: ignore[assignment]  # neither is a parameter, and no file has them
        with torch.no_grad():
            weight = weight.detach().float()
            scale = _scale(weight)
            self.r = torch.ops.onednn.qlinear_prepack((weight / scale).round_().to(torch.int8), None)
            self.w, self.zero = scale[:, 0].contiguous(), torch.zeros(len(scale), dtype=torch.int32)
            self.b = None if bias is None else bias.detach().to(dtype, copy=True)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        u, s = rounded(x.flatten(0, -2))
        y = torch.ops.onednn.qlinear_pointwise(
            u, 1.0, ZERO, self.r, self.w, self.zero, None, 1.0, 0, x.dtype, "none", [], ""
        )  # fmt: skip
        y = y.mul_(s) if self.b is None else torch.addcmul(self.b, y, s)
        return y.unflatten(0, x.shape[:-1])

    def float_layer(self) -> nn.Linear:
        """A float layer of this shape, without memory for its weights."""
        has_bias = self.b is not None
        return nn.Linear(self.in_features, self.out_features, has_bias, device="meta").requires_grad_(False).eval()


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, K) as q + 128 (N, K), 1 to 255, and scales s (N, 1), the latter in x's own numbers: x ~ s q."""
    u, s = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x), 1, dtype=x.dtype)
    tokens = max(TILE // x.shape[1], 1)
    for part, its_u, its_s in zip(x.split(tokens), u.split(tokens), s.split(tokens), strict=True):
        its_s.copy_(_scale(part))
        its_u.copy_((part / its_s).round_().add_(ZERO))  # whole numbers up to 256 are exact in bfloat16
    return u, s


def _scale(rows: Tensor) -> Tensor:
    """max |x| / 126.5 of each row, (..., 1)."""
    return (rows.abs().amax(-1, keepdim=True) / LEVELS).clamp_min_(LEAST_SCALE)


def check(device: torch.device) -> None:
    """ValueError unless such layers work on a device, and with its own instructions: else they crawl."""
    if device.type != "cpu":
        raise ValueError(f"int8 works on the CPU alone, not on {device.type!r}; choose bfloat16 there")
    able = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available() or not all(able.get(name) for name in NEEDED):
        raise ValueError(
            "int8 needs a processor with AVX-512 VNNI and bfloat16, and a torch with oneDNN, which is not so here; "
            "choose float32 or bfloat16"
        )

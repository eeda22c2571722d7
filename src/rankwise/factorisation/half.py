"""Fill chains in half precision so that what goes from factor to factor stays within its numbers.

`y = U (V x)` with `|V x|` above 65,504 has no half-precision value, though `x` and `y` have. Factors may be scaled,
`U / s (s V x)`, and `s` is a power of two, so that nothing is rounded by it. What the factors reach is read off a
sample of inputs with the moments that were collected.

Letters: G groups, N sampled rows, D inputs per group.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ..formats import Factors, Format, LowRank
from ..layers.kinds import is_convolution, site_kind
from ..layers.modules import Arrange, Bias
from ..linalg.symmetric import cholesky
from ..statistics.moments import Moments

ROWS = 256
# Between factors the sampled values stay in this range: real ones may be 16 times as large, and small ones exact.
LEAST, LARGEST = 2.0**-4, 2.0**12
# Types whose numbers end above this need no care; float16 ends at 65,504.
WIDE = 1e6


def fill(format: Format, chain: LowRank, factors: Factors, bias: Tensor | None, moments: Moments | None) -> None:
    """Set the values of a chain; in half precision factors are scaled by what their outputs reach.

    Args:
        format: of the chain.
        chain: to fill.
        factors: of the weight.
        bias: of the chain.
        moments: of its inputs; None where nothing is known of them.
    """
    dtype = next(chain.parameters()).dtype
    if moments is None or moments.one_hot or torch.finfo(dtype).max > WIDE:
        format.fill(chain, factors, bias)
        return
    wide = copy.deepcopy(chain).double()
    format.fill(wide, factors, bias)
    _scale(wide, _sampled(moments))
    with torch.no_grad():
        for tensor, value in zip(chain.parameters(), wide.parameters(), strict=True):
            tensor.copy_(value)


@torch.no_grad()
def _scale(chain: LowRank, rows_GND: Tensor) -> None:
    """Scale the factors of a plain chain; others are left as they are."""
    layers: list[nn.Module] = list(chain)
    factors = [layer for layer in layers if site_kind(layer)]
    known = all(site_kind(layer) or isinstance(layer, (Arrange, Bias)) for layer in layers)
    last = layers.index(factors[-1]) if factors else 0
    if not known or any(isinstance(layer, Bias) or getattr(layer, "bias", None) is not None for layer in layers[:last]):
        return
    x = rows_GND.transpose(0, 1).reshape(rows_GND.shape[1], -1).to(next(chain.parameters()).device)
    if is_convolution(chain.kind):
        x = x.reshape(len(x), -1, *chain.kernel_size)
    before = 1.0  # what the outputs of the factors so far are multiplied with
    for layer in layers[:last]:
        x = layer(x)
        if layer not in factors:
            continue
        reached = float(x.abs().max())
        wanted = min(max(reached, LEAST), LARGEST)
        scale = 2.0 ** round(math.log2(wanted / reached)) if reached else 1.0
        _multiply(layer, scale / before)
        before = scale
    _multiply(layers[last], 1 / before)


def _multiply(layer: nn.Module, factor: float) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.mul_(factor)


def _sampled(moments: Moments) -> Tensor:
    """Rows of the site's input, G x N x D: those that were kept, or normally distributed ones of the same moments."""
    if moments.rows_GND is not None:
        return moments.rows_GND[:, :ROWS].double()
    assert moments.second_GDD is not None
    generator = torch.Generator().manual_seed(0)
    drawn_ND = torch.randn(ROWS, moments.dim, generator=generator, dtype=torch.float64).to(moments.mean_GD.device)
    groups = []
    for second_DD, mean_D in zip(moments.second_GDD, moments.mean_GD, strict=True):
        root_DD = cholesky(second_DD - torch.outer(mean_D, mean_D), 1e-9)
        groups.append(mean_D + drawn_ND @ root_DD.mT)
    return torch.stack(groups)

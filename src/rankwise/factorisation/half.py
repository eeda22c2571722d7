"""Fill chains in half precision so that the values between the factors stay in range.

In `y = U (V x)`, `|V x|` may exceed float16's 65,504 though `x` and `y` do not. The factors are scaled by a power of
two, `U / s (s V x)`, which rounds nothing. How large `V x` gets is measured on inputs with the collected moments.

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
# The sampled values between factors stay in this range: below float16's limit by a factor of 16, above subnormals.
LEAST, LARGEST = 2.0**-4, 2.0**12
# A dtype whose largest number is above this needs no scaling.
WIDE = 1e6


def fill(format: Format, chain: LowRank, factors: Factors, bias: Tensor | None, moments: Moments | None) -> None:
    """Set the values of a chain; in float16 its factors are scaled, unless the `moments` of its inputs are unknown."""
    dtype = next(chain.parameters()).dtype
    if moments is None or moments.one_hot or torch.finfo(dtype).max > WIDE:
        format.fill(chain, factors, bias)
        return
    wide = copy.deepcopy(chain).double()  # scaled before it is rounded to half precision
    format.fill(wide, factors, bias)
    _scale(wide, _sampled(moments))
    with torch.no_grad():
        for tensor, value in zip(chain.parameters(), wide.parameters(), strict=True):
            tensor.copy_(value)


@torch.no_grad()
def _scale(chain: LowRank, rows_GND: Tensor) -> None:
    """Scale the factors of a plain chain; a chain with other modules, or an inner bias, stays as it is."""
    layers: list[nn.Module] = list(chain)
    factors = [layer for layer in layers if site_kind(layer)]
    known = all(site_kind(layer) or isinstance(layer, (Arrange, Bias)) for layer in layers)
    last = layers.index(factors[-1]) if factors else 0
    if not known or any(isinstance(layer, Bias) or getattr(layer, "bias", None) is not None for layer in layers[:last]):
        return
    # Each row is one patch: a kernel meets it at a single position.
    x = rows_GND.transpose(0, 1).reshape(rows_GND.shape[1], -1).to(next(chain.parameters()).device)
    if is_convolution(chain.kind):
        x = x.reshape(len(x), -1, *chain.kernel_size)
    before = 1.0  # the scale of the previous factor's output, which the next factor must undo
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
    """Rows of the site's input, G x N x D: the stored ones, or normally distributed ones with the same moments."""
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

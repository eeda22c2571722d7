"""What a layer multiplies its weight with: the rows of its (unfolded) input, at a seeded sample of output positions.

Rows are gathered tap-major (taps, then channels), because that copies whole channel vectors of a channels-last input;
`unfold_order` turns moments into the channel-major order of `torch.nn.functional.unfold`.

Letters: B samples, P output positions per sample, N gathered rows, G groups, C channels per group, Q taps, D = C * Q,
T outputs per group.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from ..sites import Site

# See `positions_per_sample`.
ROWS_PER_INPUT = 40
COST_IN_FORWARDS = 4
FEWEST_POSITIONS = 16


def positions_per_sample(site: Site, samples: int | None, positions: int | str) -> int | None:
    """How many output positions of each sample to gather; None for all.

    "auto" takes enough for 40 rows per input dimension over all samples, but not more than four times the layer's own
    multiplications, and at least 16 per sample: neighbouring positions repeat each other, so more of them cost time and
    teach little.

    Args:
        site: the layer.
        samples: number of calibration samples, None if unknown (then 64 positions per sample are taken).
        positions: "auto", "all", or a number per sample.

    Raises:
        ValueError: for any other value of `positions`.
    """
    if positions == "all":
        return None
    if positions == "auto":
        if samples is None:
            return 64
        enough = ROWS_PER_INPUT * site.in_features / max(samples, 1)
        total = max(math.prod(call.out_size) if call.out_size else call.rows for call in site.calls)
        affordable = COST_IN_FORWARDS * total * (site.out_features // site.groups) / site.in_features
        return max(FEWEST_POSITIONS, math.ceil(min(enough, affordable)))
    if isinstance(positions, int) and not isinstance(positions, bool) and positions > 0:
        return positions
    raise ValueError(f'positions must be "auto", "all" or a number above 0, not {positions!r}')


def sample_positions(batch: int, total: int, wanted: int | None, key: str, seed: int) -> Tensor | None:
    """Flat indices (B x n) of output positions, one random position in each of n equal strata; None for all.

    The draw depends on `key` and `seed` only, so that any run over the same data gathers the same rows.
    """
    if wanted is None or wanted >= total:
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
    strata = torch.arange(wanted) + torch.rand(batch, wanted, generator=generator, dtype=torch.float64)
    return (strata * (total / wanted)).long().clamp_max(total - 1)


def padding_sides(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom padding of a convolution; "same" puts the odd one right and below, as PyTorch does."""
    if isinstance(layer.padding, str):
        total = [
            d * (k - 1) if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        (top, bottom), (left, right) = ((extra // 2, extra - extra // 2) for extra in total)
        return left, right, top, bottom
    (top, left) = layer.padding
    return left, left, top, top


def input_rows(layer: nn.Module, x: Tensor, positions: Tensor | None) -> Tensor:
    """Rows that the weight is multiplied with, G x N x D, tap-major.

    Args:
        layer: Linear, transformers' Conv1D or Conv2d.
        x: the input of the call.
        positions: B x n flat indices of output positions, None for all.
    """
    if not isinstance(layer, nn.Conv2d):
        rows = x.reshape(len(x) if positions is not None else 1, -1, x.shape[-1])
        if positions is not None:
            rows = rows.flatten(0, 1).index_select(0, _absolute(positions, rows.shape[1]).to(x.device))
        else:
            rows = rows.clone()  # the network may overwrite its activations in place before the rows are multiplied
        return _floating(rows.reshape(1, -1, x.shape[-1]))
    if x.dim() == 3:
        x = x[None]
    B, channels, height, width = x.shape
    left, right, top, bottom = padding_sides(layer)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    Ho = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    Wo = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    if positions is None:
        positions = torch.arange(Ho * Wo).expand(B, -1)
    row = (positions // Wo * sh - top)[:, :, None] + torch.arange(kh) * dh  # B x n x kh
    column = (positions % Wo * sw - left)[:, :, None] + torch.arange(kw) * dw  # B x n x kw
    index = (_inside(row, height, layer.padding_mode) * width)[..., None] + _inside(column, width, layer.padding_mode)[
        :, :, None
    ]
    pixels = _pixels(x, index.flatten(1))  # (B n Q) x all channels
    if layer.padding_mode == "zeros" and any((left, right, top, bottom)):
        seen = ((row >= 0) & (row < height))[..., None] & ((column >= 0) & (column < width))[:, :, None]
        pixels.index_fill_(0, (~seen).flatten().nonzero().flatten().to(x.device), 0)
    rows = pixels.view(-1, kh * kw, layer.groups, channels // layer.groups).permute(2, 0, 1, 3)
    return _floating(rows.reshape(layer.groups, len(rows[0]), -1))


def _inside(at: Tensor, size: int, mode: str) -> Tensor:
    """Where a padded coordinate takes its value from; anywhere inside where padding is zeros."""
    if mode == "circular":
        return at % size
    if mode == "reflect":
        return size - 1 - (size - 1 - at.abs()).abs()
    return at.clamp(0, size - 1)


def output_rows(layer: nn.Module, y: Tensor, positions: Tensor | None) -> Tensor:
    """Rows of the layer's output at the same positions, G x N x T."""
    if isinstance(layer, nn.Conv2d):
        y = y[None] if y.dim() == 3 else y
        rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]) if positions is None else _pixels(y, positions)
        return _floating(rows.view(len(rows), layer.groups, -1).transpose(0, 1))
    if positions is None:
        rows = y.reshape(-1, y.shape[-1])
    else:
        rows = y.reshape(len(y), -1, y.shape[-1])
        rows = rows.flatten(0, 1).index_select(0, _absolute(positions, rows.shape[1]).to(y.device))
    return _floating(rows[None])


def unfold_order(taps: int, dim: int, device: torch.device) -> Tensor:
    """Index that turns tap-major inputs into the channel-major order of `unfold`."""
    return torch.arange(dim, device=device).view(taps, dim // taps).mT.reshape(-1)


def _pixels(x: Tensor, index: Tensor) -> Tensor:
    """Channel vectors of a B x C x H x W map at B x n flat pixels: (B n) x C."""
    _, channels, height, width = x.shape
    index = index.to(x.device)
    if index.shape[1] < height * width and not x.is_contiguous(memory_format=torch.channels_last):
        picked = x.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))  # few: read only those
        return picked.transpose(1, 2).reshape(-1, channels)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, _absolute(index, height * width))


def _absolute(index: Tensor, per_sample: int) -> Tensor:
    """B x n indices within a sample as flat indices into all samples."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * per_sample).flatten()


def _floating(rows: Tensor) -> Tensor:
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

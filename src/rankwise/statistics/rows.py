"""The rows that a layer multiplies with its weight: its (unfolded) input at a seeded sample of output positions.

Rows are gathered tap-major (taps, then channels), which copies whole channel vectors of a channels-last input;
`unfold_order` turns moments into the channel-major order of `torch.nn.functional.unfold`.

A transposed convolution is read at its output positions, too: each tap multiplies the input that it scattered there, or
zero where the stride puts none. These are the rows of a convolution over the input with zeros between its values. In
their moments the error of a weight is the error of the layer's output, where overlapping kernels add up.

Letters: B samples, P output positions per sample, N gathered rows, G groups, C channels per group, Q taps, D = C * Q,
T outputs per group.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.kinds import spatial_dims
from ..network.site import Site

# See `positions_per_sample`.
ROWS_PER_INPUT = 40
COST_IN_FORWARDS = 4
FEWEST_POSITIONS = 16


def positions_per_sample(site: Site, samples: int | None, positions: int | str) -> int | None:
    """How many output positions of each sample to gather; None for all.

    "auto" takes enough for 40 rows per input dimension over all samples, at least 16 per sample, and at a cost of at
    most four times the layer's own multiplications: neighbouring pixels are alike, so more of them add little. Tokens
    are not: linear layers take as many as cost the layer's own multiplications, if that is more.

    Args:
        samples: number of calibration samples, None if unknown (then 64 positions per sample).
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
        paid = total * (site.out_features // site.groups) / site.in_features
        if not site.kernel_size:
            enough = max(enough, paid)
        return max(FEWEST_POSITIONS, math.ceil(min(enough, COST_IN_FORWARDS * paid)))
    if isinstance(positions, int) and not isinstance(positions, bool) and positions > 0:
        return positions
    raise ValueError(f'positions must be "auto", "all" or a number above 0, not {positions!r}')


def rows_expected(site: Site, samples: int | None, positions: int | str) -> int:
    """How many rows all samples give if they are like the example; very many for an unknown number of samples."""
    if samples is None:
        return 10**12
    per_sample = positions_per_sample(site, samples, positions)
    dims = range(len(site.kernel_size))
    positions_of = [call.positions(dims) for call in site.calls]
    return samples * sum(count if per_sample is None else min(per_sample, count) for count in positions_of)


def sample_positions(batch: int, total: int, wanted: int | None, key: str, seed: int) -> Tensor | None:
    """Flat indices (B x n) of output positions, one random position in each of n equal strata; None for all.

    The draw depends only on `key` and `seed`, so every run over the same data gathers the same rows.
    """
    if wanted is None or wanted >= total:
        return None
    return (_strata(batch, wanted, key, seed) * (total / wanted)).long().clamp_max(total - 1)


def _strata(batch: int, wanted: int, key: str, seed: int) -> Tensor:
    """Random numbers in [0, 1), [1, 2), ... for each sample, B x n."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
    return torch.arange(wanted) + torch.rand(batch, wanted, generator=generator, dtype=torch.float64)


class Drawn(NamedTuple):
    """The output positions of one call at which rows are gathered.

    Attributes:
        positions: B x n flat indices, None for all.
        kept: which of the gathered rows are not padding, None for all.
        samples: B.
    """

    positions: Tensor | None
    kept: Tensor | None
    samples: int

    def of_inputs(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Rows that the weight is multiplied with, G x N x D, tap-major."""
        return self._real(input_rows(layer, x, self.positions))

    def of_outputs(self, layer: nn.Module, y: Tensor) -> Tensor:
        """Rows of the output at the same positions, G x N x T."""
        return self._real(output_rows(layer, y, self.positions))

    def sample_of(self, rows: int) -> Tensor | None:
        """The number of each row's sample; None where rows cannot be divided among the samples."""
        if self.kept is not None:
            return torch.arange(self.samples).repeat_interleave(self.kept.view(self.samples, -1).sum(1).cpu())
        if not self.samples or rows % self.samples:
            return None
        return torch.arange(self.samples).repeat_interleave(rows // self.samples)

    def _real(self, rows_GND: Tensor) -> Tensor:
        if self.kept is None:
            return rows_GND
        # Where rows are is known on the host; a mask on a device would have to be read.
        return rows_GND[:, self.kept.nonzero().flatten().to(rows_GND.device)]


def draw(
    layer: nn.Module, x: Tensor, y: Tensor, wanted: int | None, key: str, seed: int, real: Tensor | None = None
) -> Drawn:
    """Draw the output positions to gather for one call.

    Args:
        layer: a linear layer or a convolution.
        x, y: its input and output.
        wanted: positions of each sample, None for all.
        key, seed: of the draw.
        real: which positions of a linear layer's input are not padding, B x P; None for all.
    """
    if real is not None:
        return _drawn_among(real, wanted, key, seed, flat=x.dim() == 2)
    if dims := spatial_dims(layer):
        batch, total = len(y) if y.dim() == dims + 2 else 1, math.prod(y.shape[-dims:])
    else:
        batch, total = (len(x), x[0].numel() // x.shape[-1]) if x.dim() > 1 else (1, 1)
    return Drawn(sample_positions(batch, total, wanted, key, seed), None, batch)


def _drawn_among(real: Tensor, wanted: int | None, key: str, seed: int, flat: bool) -> Drawn:
    """The real positions of each sample if they are few, else one in each of `wanted` equal strata of them."""
    real = real.cpu()
    batch, total = real.shape
    if flat or wanted is None or wanted >= total:
        return Drawn(None, real.flatten(), batch)
    count, few = real.sum(1, keepdim=True), torch.arange(wanted).expand(batch, -1)
    drawn = (_strata(batch, wanted, key, seed) * (count / wanted)).long()
    place = torch.where(count > wanted, drawn, few).clamp_max(total - 1)
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)  # real positions first
    return Drawn(order.gather(1, place), (few < count).flatten(), batch)


def padding_sides(layer: Any) -> list[tuple[int, int]]:
    """Padding of a convolution before and after, by direction; "same" puts an odd one after, as PyTorch does."""
    if isinstance(layer.padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) if layer.padding == "same" else (0, 0) for span in spans]
    return [(padding, padding) for padding in layer.padding]


def input_rows(layer: nn.Module, x: Tensor, positions: Tensor | None) -> Tensor:
    """Rows that the weight is multiplied with, G x N x D, tap-major.

    Args:
        layer: Linear, transformers' Conv1D or a convolution.
        x: the input of the call.
        positions: B x n flat indices of output positions, None for all.
    """
    if dims := spatial_dims(layer):
        return _unfolded(layer, x if x.dim() == dims + 2 else x[None], positions)
    rows = x.reshape(len(x) if positions is not None else 1, -1, x.shape[-1])
    if positions is not None:
        rows = rows.flatten(0, 1).index_select(0, _absolute(positions, rows.shape[1]).to(x.device))
    else:
        rows = rows.clone()  # rows wait in the accumulator, while the network may overwrite its activations
    return _floating(rows.reshape(1, -1, x.shape[-1]))


def _unfolded(layer: Any, x: Tensor, positions: Tensor | None) -> Tensor:
    """Rows of a convolution's input, B x all channels x spatial."""
    B, channels, *sizes = x.shape
    sides = padding_sides(layer)
    counts = [_outputs(layer, d, size, sides[d]) for d, size in enumerate(sizes)]
    if positions is None:
        positions = torch.arange(math.prod(counts)).expand(B, -1)
    index = torch.zeros(*positions.shape, 1, dtype=torch.long)  # B x n x taps of the directions done
    seen = torch.ones_like(index, dtype=torch.bool)
    for d, position in enumerate(torch.unravel_index(positions, counts)):
        at, inside = _read_at(layer, d, position, sides[d][0], sizes[d])
        index = (index[..., None] * sizes[d] + at[:, :, None]).flatten(2)
        seen = (seen[..., None] & inside[:, :, None]).flatten(2)
    pixels = _pixels(x, index.flatten(1))  # (B n Q) x all channels
    pixels.index_fill_(0, (~seen).flatten().nonzero().flatten().to(x.device), 0)
    rows = pixels.view(-1, index.shape[2], layer.groups, channels // layer.groups).permute(2, 0, 1, 3)
    return _floating(rows.reshape(layer.groups, len(rows[0]), -1))


def _outputs(layer: Any, d: int, size: int, sides: tuple[int, int]) -> int:
    """Output positions along one direction."""
    span = layer.dilation[d] * (layer.kernel_size[d] - 1) + 1
    if layer.transposed:
        return (size - 1) * layer.stride[d] - sum(sides) + span + layer.output_padding[d]
    return (size + sum(sides) - span) // layer.stride[d] + 1


def _read_at(layer: Any, d: int, position: Tensor, before: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the taps of one direction read for an output position (B x n x taps), and whether an input is there."""
    taps = torch.arange(layer.kernel_size[d]) * layer.dilation[d]
    if layer.transposed:  # the input at i is scattered to the outputs i * stride - before + tap
        scattered = position[..., None] + before - taps
        at = scattered.div(layer.stride[d], rounding_mode="floor")
        return at.clamp(0, size - 1), (scattered % layer.stride[d] == 0) & (at >= 0) & (at < size)
    at = position[..., None] * layer.stride[d] - before + taps
    if layer.padding_mode == "zeros":
        return at.clamp(0, size - 1), (at >= 0) & (at < size)
    if layer.padding_mode == "circular":
        at = at % size
    elif layer.padding_mode == "reflect":
        at = size - 1 - (size - 1 - at.abs()).abs()
    return at.clamp(0, size - 1), torch.ones_like(at, dtype=torch.bool)


def output_rows(layer: Any, y: Tensor, positions: Tensor | None) -> Tensor:
    """Rows of the layer's output at the same positions, G x N x T."""
    if dims := spatial_dims(layer):
        y = y if y.dim() == dims + 2 else y[None]
        rows = y.movedim(1, -1).reshape(-1, y.shape[1]) if positions is None else _pixels(y, positions)
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
    """Channel vectors of a B x C x spatial map at B x n flat positions: (B n) x C."""
    channels, total = x.shape[1], math.prod(x.shape[2:])
    index = index.to(x.device)
    vectors = x.movedim(1, -1)
    if index.shape[1] < total and not vectors.is_contiguous():
        # Few positions of a channels-first map: gather them instead of copying the whole map to channels-last.
        picked = x.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))
        return picked.transpose(1, 2).reshape(-1, channels)
    return vectors.reshape(-1, channels).index_select(0, _absolute(index, total))


def _absolute(index: Tensor, per_sample: int) -> Tensor:
    """B x n indices within a sample as flat indices into all samples."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * per_sample).flatten()


def _floating(rows: Tensor) -> Tensor:
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

"""Accumulate moments of rows batch by batch.

Letters: G groups, N rows, D inputs per group, T targets per group.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .moments import LARGEST_DENSE, SAMPLED_ROWS, Moments
from .rows import unfold_order
from .shared import Products

# Rows wait until there are this many, so that the products run on large blocks.
BLOCK_ROWS = 4096
# Rows of the first, second, ... call are added up in so many parts in turn, for covariances within parts of the data.
PARTS = 32
# From twice this many columns, products are split in two to skip the half that is known by symmetry.
SMALLEST_BLOCK = 128


class Accumulator:
    """Adds up rows batch by batch: float32 products, after subtracting the first batch's mean, in float64 sums.

    Without that shift the covariance of an input that hardly varies around its mean would be rounding error. Rows are
    stored until there are more of them than inputs: that is exact, smaller, and lets the products run on large blocks.

    Args:
        taps: kernel positions Q of the tap-major rows.
        seed: of the sample of rows that is kept above 8,192 inputs.
        crosses: whether cross moments of the targets are added up, too; their mean always is.
        products: of all sites, where sites with the same rows find them.
        parts: whether magnitudes and the means of parts of the rows are added up, too.

    Attributes:
        shares: whether other sites have the same rows.
    """

    def __init__(
        self,
        taps: int = 1,
        seed: int = 0,
        *,
        crosses: bool = True,
        products: Products | None = None,
        parts: bool = False,
    ) -> None:
        self.taps = taps
        self.crosses = crosses
        self.products = products
        self.parts: list[tuple[Tensor, int]] | None = [] if parts else None
        self.updates = 0
        self.shares = False
        self.count = 0
        self.pending: list[Tensor] = []
        self.pending_targets: list[Tensor] = []
        self.pending_rows = 0
        self.keys: list[Tensor] = []
        self.shift_G1D: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self.scale = self.target_scale = 1.0  # of rows and targets, while they are added up
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, x_GND: Tensor, y_GNT: Tensor | None = None) -> None:
        """Add rows, and their targets; a ValueError if a row is not finite."""
        if self.shift_G1D is None:
            self.scale = _power_of_two(x_GND)
            self.target_scale = 1.0 if y_GNT is None else _power_of_two(y_GNT)
        x_GND = x_GND if self.scale == 1 else x_GND * self.scale
        y_GNT = y_GNT if y_GNT is None or self.target_scale == 1 else y_GNT * self.target_scale
        if self.shift_G1D is None:
            self.shift_G1D = x_GND.mean(1, keepdim=True)
        sum_GD = x_GND.sum(1).double()
        self._add("mean", sum_GD)
        if self.parts is not None:
            self._add_part(sum_GD, x_GND.shape[1])
            self._add("magnitude", x_GND.abs().sum(1).double())
        if y_GNT is not None:
            self._add("target_mean", y_GNT.sum(1).double())
            if self.crosses:
                self.pending_targets.append(y_GNT)
        self._check_finite()
        self.count += x_GND.shape[1]
        self.pending.append(x_GND)
        self.pending_rows += x_GND.shape[1]
        if x_GND.shape[2] > LARGEST_DENSE:
            self.keys.append(torch.rand(x_GND.shape[1], generator=self.generator, dtype=torch.float64))
            if self.pending_rows > 2 * SAMPLED_ROWS:
                self._thin()
        elif self.pending_rows > max(x_GND.shape[2], BLOCK_ROWS):
            self._flush()

    def _add_part(self, sum_GD: Tensor, count: int) -> None:
        assert self.parts is not None
        place, self.updates = self.updates % PARTS, self.updates + 1
        if place == len(self.parts):
            self.parts.append((sum_GD, count))
        else:
            known_GD, before = self.parts[place]
            self.parts[place] = (known_GD + sum_GD, before + count)

    def _check_finite(self) -> None:
        """Raise a ValueError if a row was not finite: one number is read, so that a device is waited for once."""
        sums = [self.sums[name].sum() for name in ("mean", "target_mean") if name in self.sums]
        if math.isfinite(float(sum(sums))):
            return
        if not torch.isfinite(self.sums["mean"]).all():
            raise ValueError("the input holds NaN or infinity; remove the sample")
        raise ValueError("the dense network's output holds NaN or infinity; run it in float32, or check its weights")

    def moments(self) -> Moments:
        """The moments so far; a ValueError if no row was added."""
        if not self.count:
            raise ValueError("no row was seen")
        dim = self.sums["mean"].shape[1]
        if self.pending and ("second" in self.sums or (dim <= LARGEST_DENSE and self.pending_rows > dim)):
            self._flush()
        dense = "second" in self.sums
        if not dense and self.keys and self.pending_rows > SAMPLED_ROWS:
            self._thin()
        assert self.shift_G1D is not None
        shift_G1D = self.shift_G1D.double()
        mean_G1D = self.sums["mean"][:, None] / self.count
        moved_G1D = mean_G1D - shift_G1D
        order = unfold_order(self.taps, mean_G1D.shape[2], mean_G1D.device)
        second_GDD = rows_GND = target_mean_GT = cross_GTD = None
        if dense:
            # With shift s: E[x x^T] = E[(x - s)(x - s)^T] + mu mu^T - (mu - s)(mu - s)^T. Then tap-major to unfold's
            # order on both sides.
            second_GDD = self.sums["second"] / self.count
            mirror(second_GDD)
            second_GDD.baddbmm_(mean_G1D.mT, mean_G1D).baddbmm_(moved_G1D.mT, moved_G1D, alpha=-1)
            blocks = second_GDD.view(len(second_GDD), self.taps, -1, self.taps, len(order) // self.taps)
            second_GDD = blocks.permute(0, 2, 1, 4, 3).reshape(second_GDD.shape)
        else:
            # Contiguous, as when read from a file, so that fits are the same to the bit.
            rows_GND = torch.cat(self.pending, dim=1) if len(self.pending) > 1 else self.pending[0].contiguous()
        if "target_mean" in self.sums:
            target_mean_GT = self.sums["target_mean"] / self.count
        if target_mean_GT is not None and self.crosses:
            if rows_GND is not None:
                targets_GNT = torch.cat(self.pending_targets, dim=1).double()
                cross_GTD = targets_GNT.mT @ rows_GND.double() / rows_GND.shape[1]
            else:
                # E[y x^T] = E[y (x - s)^T] + E[y] s^T
                cross_GTD = self.sums["cross"] / self.count + target_mean_GT[:, :, None] @ shift_G1D
            cross_GTD = cross_GTD[:, :, order]
        further: dict[str, Any] = {}
        if self.parts is not None:
            further["magnitude_GD"] = self.sums["magnitude"][:, order] / self.count
            further["parts_KGD"] = torch.stack([sum_GD / count for sum_GD, count in self.parts])[:, :, order]
            further["parts_K"] = torch.tensor([count for _, count in self.parts], dtype=torch.float64)
        moments = Moments(
            count=self.count,
            mean_GD=mean_G1D[:, 0, order],
            second_GDD=second_GDD,
            rows_GND=rows_GND if rows_GND is None or self.taps == 1 else rows_GND[:, :, order],
            target_mean_GT=target_mean_GT,
            cross_GTD=cross_GTD,
            **further,
        )
        return moments if self.scale == self.target_scale == 1 else self._unscaled(moments)

    def _unscaled(self, moments: Moments) -> Moments:
        rows, target = 1 / self.scale, 1 / self.target_scale

        def times(tensor: Tensor | None, factor: float) -> Tensor | None:
            return None if tensor is None else tensor * factor

        return replace(
            moments,
            mean_GD=moments.mean_GD * rows,
            second_GDD=times(moments.second_GDD, rows**2),
            rows_GND=times(moments.rows_GND, rows),
            target_mean_GT=times(moments.target_mean_GT, target),
            cross_GTD=times(moments.cross_GTD, rows * target),
            magnitude_GD=times(moments.magnitude_GD, rows),
            parts_KGD=times(moments.parts_KGD, rows),
        )

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _flush(self) -> None:
        assert self.shift_G1D is not None
        parts, targets = self.pending, self.pending_targets
        self.pending, self.pending_targets, self.pending_rows = [], [], 0
        groups, _, dim = parts[0].shape
        if "second" not in self.sums:
            self.sums["second"] = torch.zeros(groups, dim, dim, dtype=torch.float64, device=parts[0].device)
        product_GDD = None if self.products is None else self.products.get(parts, self.shift_G1D)
        if product_GDD is not None and not targets:
            self.sums["second"] += product_GDD
            return
        x_GND = torch.cat(parts, dim=1).sub_(self.shift_G1D)
        if self.products is not None and self.shares:
            product_GDD = x_GND.new_zeros(groups, dim, dim)
            add_gram(product_GDD, x_GND)
            self.products.put(parts, self.shift_G1D, product_GDD)
            self.sums["second"] += product_GDD
        else:
            add_gram(self.sums["second"], x_GND)
        if targets:
            self._add("cross", (torch.cat(targets, dim=1).mT @ x_GND).double())

    def _thin(self) -> None:
        """Keep the rows with the smallest random keys: a uniform sample of all rows seen, whatever their order."""
        keys = torch.cat(self.keys)
        kept = keys.argsort()[:SAMPLED_ROWS].sort().values
        self.keys = [keys[kept]]
        self.pending, self.pending_targets = [_picked(parts, kept) for parts in (self.pending, self.pending_targets)]
        self.pending_rows = len(kept)


def _power_of_two(rows: Tensor) -> float:
    """The power of two that brings the largest number near 1; 1 where squares and their sums are safe in float32.

    Raises:
        ValueError: if the squares exceed float64, too.
    """
    largest = float(rows.abs().max().nan_to_num(0.0, posinf=0.0))
    if largest == 0 or 1e-9 < largest < 1e9:
        return 1.0
    if not 1e-140 < largest < 1e140:
        raise ValueError(f"its numbers are of size {largest:.0e}, whose squares no number holds; scale the inputs")
    return 2.0 ** -max(-126, min(126, round(math.log2(largest))))


def _picked(parts: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Some rows of concatenated parts, without concatenating them first."""
    if not parts:
        return []
    result = parts[0].new_empty(len(parts[0]), len(rows), parts[0].shape[2])
    seen = done = 0
    for part_GND in parts:
        inside = rows[(rows >= seen) & (rows < seen + part_GND.shape[1])] - seen
        result[:, done : done + len(inside)] = part_GND[:, inside.to(part_GND.device)]
        seen, done = seen + part_GND.shape[1], done + len(inside)
    return [result]


def add_gram(sum_GDD: Tensor, x_GND: Tensor) -> None:
    """Add `X^T X`, of two symmetric blocks only the upper one; `mirror` fills the lower one."""
    half = x_GND.shape[2] // 2
    if half < SMALLEST_BLOCK:
        sum_GDD += x_GND.mT @ x_GND
        return
    left, right = x_GND[..., :half], x_GND[..., half:]
    add_gram(sum_GDD[:, :half, :half], left)
    add_gram(sum_GDD[:, half:, half:], right)
    sum_GDD[:, :half, half:] += left.mT @ right


def mirror(sum_GDD: Tensor) -> None:
    """Fill the blocks that `add_gram` skipped."""
    half = sum_GDD.shape[2] // 2
    if half >= SMALLEST_BLOCK:
        mirror(sum_GDD[:, :half, :half])
        mirror(sum_GDD[:, half:, half:])
        sum_GDD[:, half:, :half] = sum_GDD[:, :half, half:].mT

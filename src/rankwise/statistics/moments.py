"""Count, mean and second moment of a site's input, streamed; with targets also their cross moment.

Letters: G groups, N rows, D inputs per group, T targets per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..linalg.diagonal import Diagonal
from ..linalg.metric import Dense, Identity, Metric, Sampled
from ..linalg.two_sided import TwoSided
from .rows import unfold_order

if TYPE_CHECKING:
    from .gradients import Gradients

# Above this many inputs per group a D x D moment is not kept (536 MB in float64), but a sample of rows is.
LARGEST_DENSE = 8192
SAMPLED_ROWS = 4096
# Rows wait until there are this many, so that the products run on large blocks.
BLOCK_ROWS = 4096
# Products are split in two above twice this many columns, to leave out the half that is known by symmetry.
SMALLEST_BLOCK = 128
# Least damping, relative to the mean variance: keeps fits defined on inputs that never fire without moving the others.
DAMPING = 1e-6
LARGEST_SHARE = 0.99
NO_GRADIENTS = (
    "the statistics hold no gradients at its output; collect them with gradients=True (rankwise collect --gradients), "
    "or choose another metric and rule"
)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of one site, in the order of `torch.nn.functional.unfold`, float64.

    Either `second_GDD` is there, or the rows themselves are (fewer rows than inputs, or more inputs than 8,192).
    Neither is for the one-hot inputs of an embedding, whose second moment is the diagonal matrix of their mean.

    Attributes:
        count: rows that were seen.
        mean_GD: mean of the rows.
        second_GDD: `E[x x^T]`, uncentred.
        rows_GND: all rows, or a seeded sample of them.
        target_mean_GT, cross_GTD: mean and `E[y x^T]` of targets, where there were any.
        lookups_V: of a tied embedding how often each of its rows was looked up; all else is of its head.
        gradients: moment of the loss's gradient at the output, where it was asked for.
    """

    count: int
    mean_GD: Tensor
    second_GDD: Tensor | None = None
    rows_GND: Tensor | None = None
    target_mean_GT: Tensor | None = None
    cross_GTD: Tensor | None = None
    lookups_V: Tensor | None = None
    gradients: Gradients | None = None

    @property
    def dim(self) -> int:
        """Inputs per group."""
        return self.mean_GD.shape[1]

    @property
    def one_hot(self) -> bool:
        """Whether these are the moments of indices."""
        return self.second_GDD is None and self.rows_GND is None

    def uncentred(self) -> Moments:
        """The same with all means taken for zero: what a layer without a bias has to be fitted to."""
        if self.one_hot:  # their metric is not centred
            return self
        targets = None if self.target_mean_GT is None else torch.zeros_like(self.target_mean_GT)
        return replace(self, mean_GD=torch.zeros_like(self.mean_GD), target_mean_GT=targets)

    def without_rows(self) -> Moments:
        """The same as a second moment, which is no sample any more."""
        return self if self.rows_GND is None else replace(self, second_GDD=_second(self), rows_GND=None)

    def two_sided(self, metric: str, shrink: float = 0.0) -> TwoSided:
        """The metric of fits: "input", "diagonal" (no covariances between inputs) or "fisher" (outputs weighed too).

        Args:
            metric: its name; "weight" counts as "input", for a sequential fit sees inputs in any metric.
            shrink: share of the weight metric, on both sides.

        Raises:
            ValueError: if `shrink` is not between 0 and 1, or "fisher" finds no gradients.
        """
        if metric != "fisher":
            return TwoSided(inputs=self.metrics(shrink, diagonal=metric == "diagonal"))
        if self.gradients is None:
            raise ValueError(NO_GRADIENTS)
        inputs = self.metrics(shrink)
        return TwoSided(inputs=inputs) if shrink == 1 else self.gradients.metric(inputs, shrink)

    def metrics(self, shrink: float = 0.0, *, damping: float | None = None, diagonal: bool = False) -> list[Metric]:
        """The metric of each group: the covariance of the input, shrunk; the bias takes care of the mean.

        Of a tied embedding that of its rows comes last, their frequencies.

        `(1 - s) Sigma + s trace(Sigma) / D I`, up to scale. `Sigma` is the best estimate from the rows that were seen,
        itself shrunk by what their number asks for; `s` is for what no number of rows tells: that the network will see
        other data. The mean is not shrunk. The only value known without data is 0, and inputs after a ReLU are far
        from it: the mean of related data is the better guess.

        Args:
            shrink: `s`, from 0 (the statistics) to 1 (the weight metric).
            damping: instead of what the number of rows asks for (`shrinkage`), relative to the mean variance of an
                input; 0 for the rows as they are.
            diagonal: leave out what two inputs have in common. A variance needs few rows, so that none are asked for.

        Raises:
            ValueError: if `shrink` is not between 0 and 1.
        """
        if check_shrink(shrink) == 1:
            identities = identity_metrics(len(self.mean_GD), self.dim, self.mean_GD.device)
            return identities + self._lookup_metrics(shrink, damping)
        result: list[Metric] = []
        for group, mean_D in enumerate(self.mean_GD):
            if diagonal and not self.one_hot:
                added = DAMPING if damping is None else damping
                result.append(Diagonal(self._variance(group), (added + shrink) / (1 - shrink)))
            elif self.one_hot:
                added = self._damping(damping, float(mean_D.sum()), float(mean_D.square().sum()))
                result.append(Diagonal(mean_D, (added + shrink) / (1 - shrink)))
            elif self.second_GDD is not None:
                sigma_DD = self.second_GDD[group] - torch.outer(mean_D, mean_D)
                squares = float(sigma_DD.square().sum())
                added = self._damping(damping, float(sigma_DD.trace()), squares)
                result.append(Dense(sigma_DD, (added + shrink) / (1 - shrink)))
            else:
                assert self.rows_GND is not None
                rows_ND = (self.rows_GND[group].double() - mean_D) / self.rows_GND.shape[1] ** 0.5
                trace, squares = float(rows_ND.square().sum()), float((rows_ND @ rows_ND.mT).square().sum())
                added = self._damping(damping, trace, squares)
                result.append(Sampled(rows_ND, (added + shrink) / (1 - shrink) * trace / self.dim))
        return result + self._lookup_metrics(shrink, damping)

    def _lookup_metrics(self, shrink: float, damping: float | None) -> list[Metric]:
        if self.lookups_V is None:
            return []
        count = self.lookups_V.sum()
        return Moments(count=int(count), mean_GD=self.lookups_V[None] / count).metrics(shrink, damping=damping)

    def _variance(self, group: int) -> Tensor:
        if self.second_GDD is not None:
            return (self.second_GDD[group].diagonal() - self.mean_GD[group].square()).clamp_min(0)
        assert self.rows_GND is not None
        return (self.rows_GND[group].double() - self.mean_GD[group]).square().mean(0)

    def _damping(self, wanted: float | None, trace: float, squares: float) -> float:
        if wanted is not None:
            return wanted
        rows = self.count if self.rows_GND is None else self.rows_GND.shape[1]
        share = shrinkage(trace, squares, rows, self.dim)
        return max(DAMPING, share / (1 - share))

    def bias(self, weight: Tensor, replacement: Tensor, bias: Tensor | None) -> Tensor:
        """`b + (W - V) mu`: the bias that keeps the mean output when `replacement` takes the place of `weight`."""
        change_GTD = (weight.double() - replacement.double()).reshape(len(self.mean_GD), -1, self.dim)
        correction = torch.einsum("gtd,gd->gt", change_GTD, self.mean_GD).reshape(-1)
        return correction if bias is None else bias.double() + correction


def check_shrink(shrink: float) -> float:
    """The share of the weight metric, where it is one.

    Raises:
        ValueError: if it is not a number from 0 to 1.
    """
    if isinstance(shrink, bool) or not isinstance(shrink, (int, float)) or not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be a number from 0 (the statistics) to 1 (the weight metric), not {shrink!r}")
    return shrink


def shrinkage(trace: float, squares: float, rows: int, dim: int) -> float:
    """The share of the weight metric that brings a covariance of few rows closest to the true one.

    `min over s of E ||(1 - s) S + s trace(S) / D I - Sigma||_F^2`, estimated for normally distributed rows.

    Args:
        trace, squares: trace of the sample covariance `S` and the sum of its squared entries.
        rows, dim: that it was made of.

    Returns:
        A number from 0 (many rows) to 0.99.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, arXiv 0907.4698.
    """
    spread = squares - trace**2 / dim
    missed = ((1 - 2 / dim) * squares + trace**2) / (rows + 1 - 2 / dim)
    return min(missed / spread, LARGEST_SHARE) if spread > 0 else 0.0


def identity_metrics(groups: int, dim: int, device: torch.device | str = "cpu") -> list[Metric]:
    """The weight metric of each group."""
    return [Identity(dim, device) for _ in range(groups)]


class Accumulator:
    """Adds up rows batch by batch: float32 products of rows less the first batch's mean, float64 sums.

    Without that shift the covariance of an input that hardly varies around its mean would be rounding error.

    Rows are kept as they are until there are more of them than inputs; that is exact, smaller, and lets the products
    run on large blocks.

    Args:
        taps: kernel positions Q of the tap-major rows.
        seed: of the sample that is kept above 8,192 inputs.
    """

    def __init__(self, taps: int = 1, seed: int = 0) -> None:
        self.taps = taps
        self.count = 0
        self.pending: list[Tensor] = []
        self.pending_targets: list[Tensor] = []
        self.pending_rows = 0
        self.keys: list[Tensor] = []
        self.shift_G1D: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, x_GND: Tensor, y_GNT: Tensor | None = None) -> None:
        """Add rows, and the targets that belong to them.

        Raises:
            ValueError: if a row is not finite.
        """
        if self.shift_G1D is None:
            self.shift_G1D = x_GND.mean(1, keepdim=True)
        self._add("mean", x_GND.sum(1).double())
        if not torch.isfinite(self.sums["mean"]).all():
            raise ValueError("the input holds NaN or infinity; remove the sample")
        if y_GNT is not None:
            self._add("target_mean", y_GNT.sum(1).double())
            if not torch.isfinite(self.sums["target_mean"]).all():
                raise ValueError(
                    "the dense network's output holds NaN or infinity; run it in float32, or check its weights"
                )
            self.pending_targets.append(y_GNT)
        self.count += x_GND.shape[1]
        self.pending.append(x_GND)
        self.pending_rows += x_GND.shape[1]
        if x_GND.shape[2] > LARGEST_DENSE:
            self.keys.append(torch.rand(x_GND.shape[1], generator=self.generator, dtype=torch.float64))
            if self.pending_rows > 2 * SAMPLED_ROWS:
                self._thin()
        elif self.pending_rows > max(x_GND.shape[2], BLOCK_ROWS):
            self._flush()

    def moments(self) -> Moments:
        """The moments so far.

        Raises:
            ValueError: if no row was added.
        """
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
        if dense:  # E[x x^T] of the unshifted rows
            second_GDD = self.sums["second"] / self.count
            mirror(second_GDD)
            second_GDD.baddbmm_(mean_G1D.mT, mean_G1D).baddbmm_(moved_G1D.mT, moved_G1D, alpha=-1)
            blocks = second_GDD.view(len(second_GDD), self.taps, -1, self.taps, len(order) // self.taps)
            second_GDD = blocks.permute(0, 2, 1, 4, 3).reshape(second_GDD.shape)
        else:
            rows_GND = torch.cat(self.pending, dim=1) if len(self.pending) > 1 else self.pending[0]
        if "target_mean" in self.sums:
            target_mean_GT = self.sums["target_mean"] / self.count
            if rows_GND is not None:
                targets_GNT = torch.cat(self.pending_targets, dim=1).double()
                cross_GTD = targets_GNT.mT @ rows_GND.double() / rows_GND.shape[1]
            else:
                cross_GTD = self.sums["cross"] / self.count + target_mean_GT[:, :, None] @ shift_G1D
            cross_GTD = cross_GTD[:, :, order]
        return Moments(
            count=self.count,
            mean_GD=mean_G1D[:, 0, order],
            second_GDD=second_GDD,
            rows_GND=rows_GND if rows_GND is None or self.taps == 1 else rows_GND[:, :, order],
            target_mean_GT=target_mean_GT,
            cross_GTD=cross_GTD,
        )

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _flush(self) -> None:
        assert self.shift_G1D is not None
        x_GND = torch.cat(self.pending, dim=1).sub_(self.shift_G1D)
        if "second" not in self.sums:
            groups, _, dim = x_GND.shape
            self.sums["second"] = torch.zeros(groups, dim, dim, dtype=torch.float64, device=x_GND.device)
        add_gram(self.sums["second"], x_GND)
        if self.pending_targets:
            self._add("cross", (torch.cat(self.pending_targets, dim=1).mT @ x_GND).double())
        self.pending, self.pending_targets, self.pending_rows = [], [], 0

    def _thin(self) -> None:
        """Keep the rows with the smallest random keys: a uniform sample of all rows seen, whatever their order."""
        keys = torch.cat(self.keys)
        kept = keys.argsort()[:SAMPLED_ROWS].sort().values
        self.keys = [keys[kept]]
        self.pending, self.pending_targets = [_picked(parts, kept) for parts in (self.pending, self.pending_targets)]
        self.pending_rows = len(kept)


def _picked(parts: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Some rows of parts that belong together; only what is kept is copied."""
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
    """Add `X^T X`; of two blocks beside the diagonal only the upper one, see `mirror`."""
    half = x_GND.shape[2] // 2
    if half < SMALLEST_BLOCK:
        sum_GDD += x_GND.mT @ x_GND
        return
    left, right = x_GND[..., :half], x_GND[..., half:]
    add_gram(sum_GDD[:, :half, :half], left)
    add_gram(sum_GDD[:, half:, half:], right)
    sum_GDD[:, :half, half:] += left.mT @ right


def mirror(sum_GDD: Tensor) -> None:
    """Copy the blocks that `add_gram` filled to those that it left out."""
    half = sum_GDD.shape[2] // 2
    if half >= SMALLEST_BLOCK:
        mirror(sum_GDD[:, :half, :half])
        mirror(sum_GDD[:, half:, half:])
        sum_GDD[:, half:, :half] = sum_GDD[:, :half, half:].mT


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of all the rows that the parts saw.

    Raises:
        ValueError: if the parts have different sizes.
    """
    shapes = {tuple(part.mean_GD.shape) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"moments of different sizes cannot be merged: {sorted(shapes)}")
    count = sum(part.count for part in parts)

    def mean(values: Sequence[Tensor]) -> Tensor:
        result = torch.zeros_like(values[0])
        for value, part in zip(values, parts, strict=True):
            result.add_(value, alpha=part.count / count)
        return result

    further: dict[str, Any] = {}
    if all(part.cross_GTD is not None for part in parts):
        further = {
            "target_mean_GT": mean([part.target_mean_GT for part in parts if part.target_mean_GT is not None]),
            "cross_GTD": mean([part.cross_GTD for part in parts if part.cross_GTD is not None]),
        }
    looked_up = [part.lookups_V for part in parts if part.lookups_V is not None]
    if looked_up:
        further["lookups_V"] = torch.stack(looked_up).sum(0)
    mean_GD = mean([part.mean_GD for part in parts])
    if all(part.one_hot for part in parts):
        return Moments(count=count, mean_GD=mean_GD)
    if all(part.second_GDD is None for part in parts):
        rows_GND = _joined(parts, count)
        if parts[0].dim > LARGEST_DENSE or rows_GND.shape[1] <= parts[0].dim:
            return Moments(count=count, mean_GD=mean_GD, rows_GND=rows_GND, **further)
    return Moments(count=count, mean_GD=mean_GD, second_GDD=mean([_second(part) for part in parts]), **further)


def _joined(parts: Sequence[Moments], count: int) -> Tensor:
    """Rows of all parts, thinned to the same share of what each part saw where one of them kept a sample only."""
    kept = [part.rows_GND for part in parts if part.rows_GND is not None]
    share = min(rows.shape[1] / part.count for rows, part in zip(kept, parts, strict=True))
    if parts[0].dim > LARGEST_DENSE:
        share = min(share, max(SAMPLED_ROWS / count, 1 / count))
    generator = torch.Generator().manual_seed(count)
    thinned = []
    for rows_GND, part in zip(kept, parts, strict=True):
        chosen = torch.randperm(rows_GND.shape[1], generator=generator)[: max(1, round(share * part.count))]
        thinned.append(rows_GND[:, chosen.sort().values.to(rows_GND.device)])
    return torch.cat(thinned, dim=1)


def _second(part: Moments) -> Tensor:
    if part.second_GDD is not None:
        return part.second_GDD
    assert part.rows_GND is not None
    rows = part.rows_GND.double()
    return rows.mT @ rows / rows.shape[1]

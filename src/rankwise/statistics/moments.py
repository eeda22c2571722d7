"""Count, mean and second moment of a site's input, cross moments with targets, and the metrics that follow.

Letters: G groups, N rows, D inputs per group, T targets per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..linalg.diagonal import Diagonal
from ..linalg.large import LARGE
from ..linalg.later import Later
from ..linalg.metric import Dense, Identity, Metric, Sampled
from ..linalg.symmetric import product
from ..linalg.two_sided import TwoSided
from ..metrics import FitMetric, get_metric
from .output_gradients import Gradients
from .published import magnitudes, missing, weighted_rows, within_parts
from .shrinkage import DAMPING, check_shrink, covariance_shrinkage, shrinkage

# Above this many inputs per group a sample of rows is kept instead of a D x D moment (536 MB in float64).
LARGEST_DENSE = 8192
SAMPLED_ROWS = 4096
# With so many rows variances are known. Covariances that need a larger share of shrinkage are mostly noise.
MANY_ROWS_PER_INPUT, MOSTLY_NOISE = 8, 0.5
NO_GRADIENTS = (
    "the statistics hold no gradients at its output; collect them with gradients=True (rankwise collect --gradients), "
    "or choose another metric and rule"
)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of one site, in the order of `torch.nn.functional.unfold`, float64.

    They hold either `second_GDD` or the rows themselves (fewer rows than inputs, or more than 8,192 inputs). One-hot
    inputs of an embedding need neither: their second moment is the diagonal matrix of their mean.

    Attributes:
        count: rows that were seen.
        mean_GD: mean of the rows.
        second_GDD: `E[x x^T]`, uncentred.
        rows_GND: all rows, or a seeded sample.
        target_mean_GT, cross_GTD: mean of targets, and `E[y x^T]`.
        lookups_V: how often each row of a tied embedding was looked up; all else belongs to its head.
        gradients: moment of the loss's gradient at the output.
        magnitude_GD: mean of the absolute values of the rows.
        parts_KGD, parts_K: mean and number of the rows in each of some parts of the data.
    """

    count: int
    mean_GD: Tensor
    second_GDD: Tensor | None = None
    rows_GND: Tensor | None = None
    target_mean_GT: Tensor | None = None
    cross_GTD: Tensor | None = None
    lookups_V: Tensor | None = None
    gradients: Gradients | None = None
    magnitude_GD: Tensor | None = None
    parts_KGD: Tensor | None = None
    parts_K: Tensor | None = None

    @property
    def dim(self) -> int:
        """Inputs per group."""
        return self.mean_GD.shape[1]

    @property
    def one_hot(self) -> bool:
        """Whether these are moments of indices."""
        return self.second_GDD is None and self.rows_GND is None

    def uncentred(self) -> Moments:
        """The same with zero means: for fitting a layer without a bias, whose weight must give the mean, too."""
        if self.one_hot:  # never centred
            return self
        targets = None if self.target_mean_GT is None else torch.zeros_like(self.target_mean_GT)
        return replace(self, mean_GD=torch.zeros_like(self.mean_GD), target_mean_GT=targets)

    def without_rows(self) -> Moments:
        """The same with a second moment in place of rows."""
        return self if self.rows_GND is None else replace(self, second_GDD=_second(self), rows_GND=None)

    def two_sided(self, metric: str | FitMetric, shrink: float = 0.0) -> TwoSided:
        """The metric of fits by its name (`FitMetric.of`); "weight" means "input" here."""
        return get_metric(metric).of(self, shrink)

    def sided(
        self, shrink: float, *, diagonal: bool = False, weighted: bool = False, kind: str | None = None
    ) -> TwoSided:
        """The metric of fits.

        Args:
            shrink: share of the weight metric, on both sides.
            diagonal: ignore covariances between inputs.
            weighted: weight the outputs by the gradients.
            kind: a metric of the literature instead, one of `published.KINDS`.

        Raises:
            ValueError: if `shrink` is not between 0 and 1, or something is missing.
        """
        if kind is not None:
            return self._published(kind, check_shrink(shrink))
        if weighted and self.gradients is None:
            raise ValueError(NO_GRADIENTS)
        inputs = self.metrics(shrink, diagonal=diagonal)
        if not weighted or self.gradients is None:
            return TwoSided(inputs=inputs)
        return TwoSided(inputs=inputs) if shrink == 1 else self.gradients.metric(inputs, shrink)

    def _published(self, kind: str, shrink: float) -> TwoSided:
        """A metric of the literature; indices of an embedding have one metric only."""
        if shrink == 1 or (self.one_hot and kind != "rows"):
            return TwoSided(inputs=self.metrics(shrink))
        if kind == "magnitude" and self.magnitude_GD is not None:
            return TwoSided(inputs=magnitudes(self.magnitude_GD, shrink) + self._lookup_metrics(shrink, None))
        if kind == "pooled" and self.parts_KGD is not None and self.parts_K is not None:
            inputs = within_parts(_second(self), self.parts_KGD, self.parts_K, shrink)
            return TwoSided(inputs=inputs + self._lookup_metrics(shrink, None))
        if kind == "rows" and self.gradients is not None and self.gradients.rows_GT is not None:
            return weighted_rows(self.gradients.rows_GT, self.dim)
        raise missing(kind)

    def metrics(self, shrink: float = 0.0, *, damping: float | None = None, diagonal: bool = False) -> list[Metric]:
        """The metric of each group, its inputs' shrunk covariance; last, the frequencies of a tied embedding's rows.

        `(1 - s) Sigma + s trace(Sigma) / D I`, up to scale. `Sigma` is the best estimate from the rows, itself shrunk
        if they are few: towards the weight metric (`shrinkage`). From eight rows per input, the error of an estimated
        variance is proportional to it in every direction, even where inputs hardly vary, and nothing is added. Only
        inputs that look independent have their covariances shrunk towards 0 (`covariance_shrinkage`). `s` covers what
        no number of rows shows: that the network will see other data.

        The bias corrects the mean, which is not shrunk: without data one would guess 0, but inputs after a ReLU are far
        from it, and the mean of related data is the better guess.

        Args:
            shrink: `s`, from 0 (the statistics) to 1 (the weight metric).
            damping: replaces the shrinkage for few rows, relative to the mean variance of an input; 0 for none.
            diagonal: ignore covariances between inputs. Variances need few rows, so they are not shrunk.

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
            else:
                make = partial(self._input_metric, group, shrink, damping)
                result.append(Later(make, self.dim, mean_D.device))
        return result + self._lookup_metrics(shrink, damping)

    def _input_metric(self, group: int, shrink: float, damping: float | None) -> Metric:
        mean_D = self.mean_GD[group]
        if self.second_GDD is not None:
            sigma_DD = self.second_GDD[group] - torch.outer(mean_D, mean_D)
            squares = _squares(sigma_DD)
            if damping is None and self.count >= MANY_ROWS_PER_INPUT * self.dim:
                share = covariance_shrinkage(sigma_DD.diagonal(), squares, self.count)
                if share > MOSTLY_NOISE:
                    sigma_DD = torch.lerp(sigma_DD, sigma_DD.diagonal().diag(), share)
                added = DAMPING
            else:
                added = self._damping(damping, float(sigma_DD.trace()), squares)
            return Dense(sigma_DD, (added + shrink) / (1 - shrink))
        assert self.rows_GND is not None
        rows_ND = (self.rows_GND[group].double() - mean_D) / self.rows_GND.shape[1] ** 0.5
        trace = float(rows_ND.square().sum())
        squares = 0.0 if damping is not None else _squares_of_gram(rows_ND, trace)
        added = self._damping(damping, trace, squares)
        return Sampled(rows_ND, (added + shrink) / (1 - shrink) * trace / self.dim)

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
        """`b + (W - V) mu`: the bias that keeps the mean output when `replacement` replaces `weight`."""
        change_GTD = (weight.double() - replacement.double()).reshape(len(self.mean_GD), -1, self.dim)
        correction = torch.einsum("gtd,gd->gt", change_GTD, self.mean_GD).reshape(-1)
        return correction if bias is None else bias.double() + correction


def _squares(S_DD: Tensor) -> float:
    """Sum of squared entries; of a large matrix without a copy."""
    if S_DD.numel() < LARGE:
        return float(S_DD.square().sum())
    return float(torch.dot(S_DD.flatten(), S_DD.flatten()))


def _squares_of_gram(rows_ND: Tensor, trace: float) -> float:
    """Sum of squared entries of `X X^T`; of many large rows in float32, which is enough for a share of shrinkage."""
    if rows_ND.numel() < LARGE or not trace:
        return _squares(rows_ND @ rows_ND.mT)
    unit_ND = (rows_ND / trace**0.5).float()
    return float(product(unit_ND, unit_ND).square().sum()) * trace * trace


def identity_metrics(groups: int, dim: int, device: torch.device | str = "cpu") -> list[Metric]:
    """The weight metric of each group."""
    return [Identity(dim, device) for _ in range(groups)]


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the rows of all parts; a ValueError if their sizes differ."""
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
    for name in ("target_mean_GT", "cross_GTD", "magnitude_GD"):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if len(values) == len(parts):
            further[name] = mean(values)
    for name in ("parts_KGD", "parts_K"):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if len(values) == len(parts):
            further[name] = torch.cat(values)
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
    """Rows of all parts; where one of them kept only a sample, all are thinned to the same share of the rows seen."""
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
    if part.rows_GND.numel() < LARGE or not 1e-9 < float(part.rows_GND.abs().max()) < 1e9:
        rows = part.rows_GND.double()
        return rows.mT @ rows / rows.shape[1]
    # As the moments of many rows: float32 products after the mean is taken out.
    means = part.rows_GND.mean(1, keepdim=True)
    centred = [rows_ND - mean_1D for rows_ND, mean_1D in zip(part.rows_GND, means, strict=True)]
    second = torch.stack([product(rows_ND.mT, rows_ND.mT).double() for rows_ND in centred]) / part.rows_GND.shape[1]
    return second.baddbmm_(means.double().mT, means.double())

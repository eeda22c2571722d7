"""Compare the outputs of two networks batch by batch, and add up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from ..running.outputs import Outputs, described, is_detections, leaves_of

NO_SAMPLES = "there are no samples: the batches are empty, or a generator that was already used up"
OVERLAP = 0.5  # least intersection over union of boxes that match
CONFIDENT = 0.5  # detections with a lower score are ignored
OWN = "no measure of Rankwise compares them: judge by a function of your own (evaluate=, on the command line --metric)"


class Tally(ABC):
    """Adds up a comparison; errors of `add` do not name the batch."""

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0

    @abstractmethod
    def add(self, dense: Any, small: Any) -> None:
        """Add what both networks returned for a batch."""

    def value(self) -> float:
        """The comparison over all batches."""
        if not self.rows:
            raise ValueError(NO_SAMPLES)
        return self.total / self.rows

    def parts(self) -> dict[str, float]:
        """The value of each of several outputs, if the comparison has one."""
        return {}


class OfScores(Tally):
    """A comparison of scores of classes."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = outputs


class Agreement(OfScores):
    """How often both choose the same, in per cent."""

    def add(self, dense: Any, small: Any) -> None:
        theirs, ours = _scores(self.outputs, dense, small)
        same = theirs.argmax(-1) == ours.argmax(-1) if self.outputs.has_scores else theirs == ours
        self.total += 100 * int(same.sum())
        self.rows += same.numel()


class Divergence(OfScores):
    """Mean Kullback-Leibler divergence of the answers, in nats: `E sum_k p(k) log(p(k) / q(k))`."""

    def add(self, dense: Any, small: Any) -> None:
        p, q = (log_softmax(each.double(), -1) for each in _scores(self.outputs, dense, small, self.outputs.logits))
        self.total += float((p.exp() * (p - q)).sum())
        self.rows += p[..., 0].numel()

    def value(self) -> float:
        return max(super().value(), 0.0)


class SquaredError(Tally):
    """`||small - dense||^2 / ||dense||^2`, or for integers the share that differs; the worst of all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, list[float]] = {}
        self.integers: set[str] = set()

    def add(self, dense: Any, small: Any) -> None:
        for name, theirs, ours in pairs_of(dense, small):
            error, norm = _squares(theirs, ours)
            if not (theirs.is_floating_point() or theirs.is_complex()):
                self.integers.add(name)
            known = self.sums.setdefault(name, [0.0, 0.0])
            known[0] += error
            known[1] += norm

    def value(self) -> float:
        if not self.sums:
            raise ValueError(NO_SAMPLES)
        return max(self._errors().values())

    def parts(self) -> dict[str, float]:
        return self._errors() if len(self.sums) > 1 else {}

    def _errors(self) -> dict[str, float]:
        for name, (error, norm) in self.sums.items():
            if error and not norm:
                raise ValueError(f"output {name!r} of the dense network is zero everywhere: no error is relative to it")
        return {name: error / norm if norm else 0.0 for name, (error, norm) in self.sums.items()}


class RelativeError(SquaredError):
    """`||small - dense|| / ||dense||`, or for integers the share that differs; the worst of all outputs."""

    def _errors(self) -> dict[str, float]:
        errors = super()._errors().items()
        return {name: error if name in self.integers else math.sqrt(error) for name, error in errors}


class Cosine(Tally):
    """Mean cosine between the vectors of both networks, which lie along dimension `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def add(self, dense: Any, small: Any) -> None:
        for _, theirs, ours in pairs_of(dense, small):
            if theirs.is_floating_point():
                if not theirs.dim():
                    raise ValueError("a single number has no direction; take relative_error")
                cosines = cosine_similarity(theirs.double(), ours.double(), dim=self.dim)
                self.total += float(cosines.sum())
                self.rows += cosines.numel()


class Detections(Tally):
    """`2 matches / (detections of both)` in per cent: same label, and boxes that overlap by half.

    Detections with a score below 0.5 are ignored. In the order of the dense network's scores, each box is matched to
    the free box that overlaps it most.
    """

    def add(self, dense: Any, small: Any) -> None:
        if not is_detections(small) or len(dense) != len(small):
            raise ValueError(f"one network returned detections, the other {described(small)}")
        for theirs, ours in zip(dense, small, strict=True):
            a, b = _confident(theirs), _confident(ours)
            self.total += 200 * _matches(a, b)
            self.rows += len(a["boxes"]) + len(b["boxes"])

    def value(self) -> float:
        if not self.rows:
            raise ValueError(
                f"neither network detects anything with a score of {CONFIDENT} or more; judge by a function of your own"
            )
        return super().value()


def pairs_of(dense: Any, small: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Outputs of the same name, on the device of the dense network's, with 0 where those are not finite.

    Raises:
        ValueError: if names or shapes differ, or values are not finite that are finite in the dense network.
    """
    theirs, ours = dict(leaves_of(dense)), dict(leaves_of(small))
    if theirs.keys() != ours.keys():
        differing = ", ".join(sorted(theirs.keys() ^ ours.keys()))
        raise ValueError(f"one network returned outputs that the other does not have: {differing}; {OWN}")
    pairs = []
    for name, wanted in theirs.items():
        got = ours[name].detach().to(wanted.device)
        if got.shape != wanted.shape:
            which = f"output {name!r} has" if name else "outputs have"
            raise ValueError(
                f"{which} shape {list(wanted.shape)} in one network and {list(got.shape)} in the other; {OWN}"
            )
        if wanted.is_floating_point() or wanted.is_complex():
            finite = wanted.isfinite()
            if not bool((got.isfinite() | (got == wanted))[~wanted.isnan()].all()):
                raise ValueError(f"one network gave outputs {name!r} that are not finite; check its weights")
            got, wanted = got.masked_fill(~finite, 0), wanted.masked_fill(~finite, 0)
        pairs.append((name, wanted, got))
    return pairs


def _scores(
    outputs: Outputs, dense: Any, small: Any, take: Callable[[Any], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    theirs, ours = map(take or outputs.scores, (dense, small))
    if theirs.shape != ours.shape:
        raise ValueError(
            f"one model gives scores of shape {list(theirs.shape)}, the other {list(ours.shape)}; they must have the "
            "same classes"
        )
    for scores in (theirs, ours):
        if not bool(scores.isfinite().all()):
            raise ValueError("a network gave scores that are not finite; check its weights")
    return theirs, ours.to(theirs.device)


def _squares(theirs: Tensor, ours: Tensor) -> tuple[float, float]:
    if theirs.is_floating_point() or theirs.is_complex():
        exact = torch.promote_types(theirs.dtype, torch.float64)
        theirs, ours = theirs.to(exact), ours.to(exact)
        return float((ours - theirs).abs().square().sum()), float(theirs.abs().square().sum())
    return float((theirs != ours).sum()), float(theirs.numel())


def _confident(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    order = found["scores"].argsort(descending=True)
    order = order[found["scores"][order] >= CONFIDENT]
    return {key: found[key][order].cpu() for key in ("boxes", "labels", "scores")}


def _matches(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    overlap_AB = _overlaps(a["boxes"], b["boxes"]) * (a["labels"][:, None] == b["labels"])
    count = 0
    for row_B in overlap_AB:
        if len(row_B) and float(row_B.max()) >= OVERLAP:
            overlap_AB[:, int(row_B.argmax())] = 0.0
            count += 1
    return count


def _overlaps(a_A4: Tensor, b_B4: Tensor) -> Tensor:
    """Intersection over union of boxes `(x1, y1, x2, y2)`, A x B."""
    low, high = torch.maximum(a_A4[:, None, :2], b_B4[:, :2]), torch.minimum(a_A4[:, None, 2:], b_B4[:, 2:])
    shared_AB = (high - low).clamp_min(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a_A4, b_B4)]
    return shared_AB / (areas[0][:, None] + areas[1] - shared_AB).clamp_min(torch.finfo(shared_AB.dtype).tiny)

"""Measures that judge a network, alone or beside the dense one: a number, its name, and which way is better.

| outputs | measures, the first one judges |
|---|---|
| scores of all words for the next one, in transformers | perplexity, agreement, relative error |
| scores of classes, a yes or no, numbers of classes | accuracy where there are labels, agreement, relative error |
| embeddings | cosine, relative error |
| detections | detections that agree |
| values: one output, regression, images, several outputs | relative error |
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..running.batches import inputs_to_blame, made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.outputs import Outputs
from ..running.pristine import pristine
from ..running.verbs import verb
from .next_token import perplexity
from .scores import accuracy
from .tallies import Agreement, Cosine, Detections, Divergence, RelativeError, SquaredError, Tally

Judge = Callable[[nn.Module, Iterable[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number by which a network is judged.

    Attributes:
        key: name in files.
        title: name for people, with the dimension of the classes.
        higher: whether higher is better.
        unit: "%", or empty.
        point: size of a point of loss: 1 of a percentage, 0.01 of a share, 1 of a user's own measure.
        best: the value of the dense network beside itself; None if it must be measured.
        tally: for comparisons with the dense network, makes a tally that adds up batches.
        judge: for measures of one network, gives its value on batches.

    Example:
        >>> size = Measure.own(lambda model, batches: model.weight.numel(), name="size", higher=False)
        >>> size(nn.Linear(2, 2), nn.Linear(4, 2), []), size.lost(4, reference=8)
        (4.0, -4.0)
    """

    key: str
    title: str
    higher: bool
    unit: str = ""
    point: float = 1.0
    best: float | None = None
    tally: Callable[[], Tally] | None = field(default=None, repr=False)
    judge: Judge | None = field(default=None, repr=False)

    @classmethod
    def own(cls, function: Judge, *, higher: bool | None = None, name: str | None = None) -> Measure:
        """A user's own measure.

        Args:
            function: `function(model, batches) -> number`; the model is in eval mode without gradients, and batches are
                pairs (inputs, labels) if there are labels.
            higher: whether higher is better; by default `function.higher_is_better`, else true.
            name: by default the function's own.

        Raises:
            ValueError: if the function cannot be called with a model and batches.
        """
        name = name or str(getattr(function, "__name__", type(function).__name__))
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise ValueError(
                f"measure {name!r} is called as {name}(model, batches), which it does not take: {error}"
            ) from None
        except ValueError:  # built-in functions have no signature
            pass
        if higher is None:
            higher = bool(getattr(function, "higher_is_better", True))
        return cls(key=name, title=name, higher=higher, judge=partial(_judged, function, name))

    def __call__(self, small: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> float:
        """The value of a network beside the dense one.

        Raises:
            ValueError: if outputs cannot be compared, or a user's function fails or gives no number.
        """
        if self.judge is not None:
            return float(self.judge(small, batches))
        return compared(small, dense, batches, [self])[self.key]

    def reference(self, dense: nn.Module, batches: Iterable[Any]) -> float:
        """The value of the dense network."""
        return self(dense, dense, batches) if self.best is None else self.best

    def lost(self, value: float, reference: float) -> float:
        """Points by which a value is worse than the reference, the value of the dense network."""
        return (reference - value if self.higher else value - reference) / self.point

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return f"{'higher' if self.higher else 'lower'} is better"

    def points(self, points: float) -> str:
        """Points of loss, in words."""
        what = self.key.replace("_", " ")
        return f"{points:g} points of {what}" + ("" if self.point == 1 else f" (of {self.point:g} each)")

    def document(self) -> dict[str, Any]:
        """For files."""
        return {"title": self.title, "unit": self.unit, "higher_is_better": self.higher}


def shown(value: float, unit: str) -> str:
    """A value as printed.

    Example:
        >>> shown(94.123, "%"), shown(0.0312345, "")
        ('94.12 %', '0.0312345')
    """
    return f"{value:.2f} %" if unit == "%" else f"{value:.6g}"


def measures_for(outputs: Outputs, labelled: bool = False) -> tuple[Measure, ...]:
    """The measures that fit outputs of the dense network, the one that judges first.

    Args:
        outputs: of the dense network.
        labelled: whether batches are pairs with labels.
    """
    if outputs.is_choice:
        names = [*(["accuracy"] if labelled else []), "agreement", "relative_error"]
        return tuple(measure(name, outputs) for name in names if name != "relative_error" or outputs.kind != "answers")
    if outputs.kind == "embeddings":
        return measure("cosine", outputs), measure("relative_error", outputs)
    return (measure("detections" if outputs.kind == "detections" else "relative_error", outputs),)


def measure_of_plans(outputs: Outputs) -> Measure:
    """The measure that compares plans: a distance from the dense network that grows as the squared errors of layers."""
    return measure("divergence" if outputs.has_scores else "squared_error", outputs)


def measure(name: str, outputs: Outputs) -> Measure:
    """The measure of a name for these outputs.

    Raises:
        ValueError: for an unknown name, or one that does not fit the outputs.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}; the measures are {', '.join(MEASURES)}, or a function of your own")
    needs_choice = name in ("accuracy", "agreement", "divergence")
    if (needs_choice and not outputs.is_choice) or (name == "divergence" and not outputs.has_scores):
        raise ValueError(
            f"{name} needs scores of classes; the network's outputs are {outputs.kind} ({outputs.why}): take "
            f"{measures_for(outputs)[0].key}, or name the dimension of the classes"
        )
    if name == "detections" and outputs.kind != "detections":
        raise ValueError(f"detections needs lists of boxes, labels and scores; the outputs are {outputs.kind}")
    return MEASURES[name](outputs)


@verb
def compared(
    small: nn.Module, dense: nn.Module, batches: Iterable[Any], measures: Iterable[Measure]
) -> dict[str, float]:
    """Run two networks over inputs once, and compare them by several measures.

    Args:
        small: network to judge.
        dense: network whose outputs count as right.
        batches: inputs without labels.
        measures: comparisons.

    Returns:
        Values by key; for the relative error of several outputs also that of each, as `relative_error.NAME`.

    Raises:
        ValueError: naming the batch with outputs that cannot be compared, or if there is no batch.
    """
    dense, small = unwrap(dense), unwrap(small)
    tallies = {each.key: each.tally() for each in measures if each.tally is not None}
    with pristine(dense), pristine(small):
        for index, batch in enumerate(made(batches)):
            theirs, ours = call(dense, batch, index=index), call(small, batch, index=index)
            for tally in tallies.values():
                try:
                    tally.add(theirs, ours)
                except ValueError as error:
                    raise ValueError(f"batch {index}: {error}{inputs_to_blame(batch)}") from None
    parts = {f"{key}.{name}": value for key, tally in tallies.items() for name, value in tally.parts().items()}
    return {key: tally.value() for key, tally in tallies.items()} | parts


def _judged(function: Judge, name: str, model: nn.Module, batches: Iterable[Any]) -> float:
    model = unwrap(model)
    try:
        with pristine(model):
            value = function(model, batches)
    except Exception as error:
        raise ValueError(f"measure {name!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"measure {name!r} returned a {type(value).__name__}; it must return one number") from None
    if not math.isfinite(number):
        raise ValueError(f"measure {name!r} returned {number}; it must return a finite number")
    return number


def _accuracy(outputs: Outputs) -> Measure:
    return Measure(
        key="accuracy",
        title=f"accuracy, {outputs}",
        higher=True,
        unit="%",
        judge=lambda model, batches: accuracy(model, batches, k=(1,), outputs=outputs)["top1"],
    )


def _alike(key: str, title: str, tally: Callable[[], Tally]) -> Measure:
    """How much is alike, in per cent."""
    return Measure(key=key, title=title, higher=True, unit="%", best=100.0, tally=tally)


def _apart(key: str, title: str, tally: Callable[[], Tally], point: float = 0.01) -> Measure:
    """A distance."""
    return Measure(key=key, title=title, higher=False, point=point, best=0.0, tally=tally)


def _cosine(outputs: Outputs) -> Measure:
    dim = outputs.dim if outputs.kind == "embeddings" else -1
    return Measure(key="cosine", title="cosine", higher=True, point=0.01, best=1.0, tally=partial(Cosine, dim))


def _perplexity(outputs: Outputs) -> Measure:
    return Measure(key="perplexity", title="perplexity", higher=False, judge=perplexity)


MEASURES: Mapping[str, Callable[[Outputs], Measure]] = {
    "accuracy": _accuracy,
    "agreement": lambda of: _alike("agreement", f"agreement, {of}", partial(Agreement, of)),
    "perplexity": _perplexity,
    "divergence": lambda of: _apart("divergence", f"divergence in nats, {of}", partial(Divergence, of), point=1.0),
    "relative_error": lambda _: _apart("relative_error", "relative error", RelativeError),
    "squared_error": lambda _: _apart("squared_error", "relative squared error", SquaredError),
    "cosine": _cosine,
    "detections": lambda _: _alike("detections", "detections that agree, IoU 0.5", Detections),
}

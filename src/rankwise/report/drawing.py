"""The pictures of a report: fronts, spectra, error curves, errors, samples."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..drawing import FONT, PAGE, Colours, figure
from .findings import Front, Layer, Point


def front_figure(front: Front, width: float = 7.6, height: float = 4.2, colours: Colours = PAGE) -> Any:
    """Networks for a list of budgets with their labels, intervals and the dense reference."""
    with figure(width, height, colours) as (made, axes):
        # The chosen network is one of the front, unless another one stands for its budget.
        points = [each for each in front.points if not each.chosen or not _beside(each, front.points)]
        axes.plot(
            [each.share for each in points], [each.value for each in points], color=colours.small, marker="o", ms=5
        )
        for each in front.points:
            if each.low is not None and each.high is not None:
                axes.vlines(
                    each.share, each.low, each.high, color=colours.warn if each.chosen else colours.small, lw=1.4
                )
            if each.chosen:
                axes.plot([each.share], [each.value], color=colours.warn, marker="D", ms=9, ls="none")
            if not each.chosen and any(own.chosen for own in _beside(each, front.points)):
                continue  # its label would lie on that of the chosen one
            # Errors fall to the right, so there is room above; accuracies rise, and there is room below.
            down = -1 if front.higher else 1
            axes.annotate(
                each.label,
                (each.share, each.value),
                textcoords="offset points",
                xytext=(8, 12 * down) if each.chosen else (4, 8 * down),
                ha="left",
                va="top" if front.higher else "bottom",
                color=colours.warn if each.chosen else colours.muted,
                fontsize=FONT if each.chosen else FONT - 1,
                fontweight="bold" if each.chosen else "normal",
            )
        if front.reference is not None:
            axes.axhline(front.reference, color=colours.dense, ls="--", lw=1.2)
            axes.plot([1.0], [front.reference], color=colours.dense, marker="s", ms=8)
            axes.annotate(
                "dense",
                (1.0, front.reference),
                textcoords="offset points",
                xytext=(0, 9),
                ha="center",
                color=colours.muted,
            )
        axes.margins(0.06, 0.16)
        title = "MACs" if front.unit == "macs" else front.unit
        if front.reference == 0 and not front.higher:
            axes.set_ylim(bottom=-0.03 * max(each.value for each in front.points))
        axes.set_xlabel(f"share of the dense network's {title}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylabel(front.title)
        return made


def spectrum_figure(layer: Layer, width: float = 3.4, height: float = 2.3, colours: Colours = PAGE) -> Any:
    """The singular values of a layer, and the rank that is kept."""
    with figure(width, height, colours) as (made, axes):
        values = [value for value in layer.values if value > 0]
        axes.semilogy(range(1, len(values) + 1), values, color=colours.small)
        if layer.cut is not None:
            axes.axvspan(layer.cut, max(len(values), layer.cut + 1), color=colours.line, alpha=0.45, lw=0)
            axes.axvline(layer.cut, color=colours.warn, lw=1.4)
            axes.annotate(
                f"rank {layer.cut}",
                (layer.cut, 1.0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(4 if layer.cut < len(values) * 0.65 else -4, -11),
                ha="left" if layer.cut < len(values) * 0.65 else "right",
                color=colours.warn,
                fontsize=FONT - 1,
            )
        axes.set_xlabel("singular value")
        _round_ticks(axes.yaxis, values)
        return made


def curve_figure(layer: Layer, width: float = 3.4, height: float = 2.3, colours: Colours = PAGE) -> Any:
    """The error of every option of a layer against its MACs, and the one that was chosen."""
    with figure(width, height, colours) as (made, axes):
        options = [(share, error) for share, error in layer.curve if error > 0]
        best = list(_front_of(options))
        axes.semilogy(*zip(*options, strict=True), color=colours.line, marker=".", ms=3, ls="none")
        axes.semilogy(*zip(*best, strict=True), color=colours.small)
        share = layer.share
        if share is not None and layer.predicted:
            axes.plot([share], [layer.predicted], color=colours.warn, marker="D", ms=7, ls="none")
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("share of its MACs")
        _round_ticks(axes.yaxis, [error for _, error in options])
        return made


def errors_figure(layers: Sequence[Layer], width: float = 4.6, height: float = 4.2, colours: Colours = PAGE) -> Any:
    """Measured against predicted errors of layers; on the diagonal they are the same."""
    with figure(width, height, colours) as (made, axes):
        both = [(each.predicted, each.measured) for each in layers if each.predicted and each.measured]
        low = min(min(pair) for pair in both) / 2
        high = max(max(pair) for pair in both) * 2
        axes.plot([low, high], [low, high], color=colours.dense, ls="--", lw=1.2)
        axes.loglog([a for a, _ in both], [b for _, b in both], color=colours.small, marker="o", ms=5, ls="none")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("predicted error of the layer alone")
        axes.set_ylabel("measured error in the network")
        _round_ticks(axes.xaxis, (low, high))
        _round_ticks(axes.yaxis, (low, high))
        return made


def _beside(point: Point, points: Sequence[Point]) -> list[Point]:
    """The other networks of about the same cost."""
    return [each for each in points if each is not point and abs(each.share - point.share) < 0.02]


def _front_of(options: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The options, sorted by cost, that no cheaper one beats."""
    least = math.inf
    for share, error in options:
        if error < least:
            least = error
            yield share, error


def _round_ticks(axis: Any, values: Sequence[float]) -> None:
    """Round numbers at a logarithmic axis: more of them where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    spans = math.log10(max(values) / min(values)) if values and min(values) > 0 else 1.0
    axis.set_major_locator(LogLocator(subs=(1.0,) if spans > 2 else (1.0, 2.0, 5.0), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())


def picture(inputs: Any) -> bytes | None:
    """A sample as PNG if it is a picture, its values spread over black and white; else None."""
    shape = tuple(getattr(inputs, "shape", ()))
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 4:
        return None
    from PIL import Image

    pixels = inputs.detach().float().cpu()
    low, high = float(pixels.min()), float(pixels.max())
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    scaled = ((pixels - low) / max(high - low, 1e-12) * 255).round().byte().movedim(0, -1).squeeze(-1).numpy()
    made = Image.fromarray(scaled)
    made.thumbnail((160, 160))
    written = io.BytesIO()
    made.save(written, format="PNG")
    return written.getvalue()

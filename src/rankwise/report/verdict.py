"""What a report says first: the gist in a sentence, and what got worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..figures.rows import ENGINES
from .findings import Findings, Layer

LARGE = 0.1  # relative squared error of a layer's output: a tenth of it is lost
OFF = 0.25  # relative difference of a predicted and a measured time that is worth a word


def gist(found: Findings) -> str:
    """The result in one sentence."""
    dense, small = (found.figures.get(name, {}) for name in ("dense", "compressed"))
    parts = []
    for key, title in (("params", "parameters"), ("macs", "multiply-accumulates")):
        if small.get(key) and dense.get(key):
            parts.append(f"{small[key] / dense[key]:.1%} of the {title}")
    changed = sum(layer.format != "dense" for layer in found.layers)
    sentence = f"The compressed network keeps {' and '.join(parts)}; " if parts else ""
    layers = "layer is" if len(found.layers) == 1 else "layers are"
    sentence += f"{changed} of {len(found.layers)} {layers} factorised."
    if "top1" in dense and "top1" in small:
        sentence += f" Its top-1 accuracy is {small['top1']:.2f} %, that of the dense network {dense['top1']:.2f} %."
    elif "agreement" in small:
        sentence += f" It answers as the dense network does in {small['agreement']:.2f} % of all cases."
    return sentence


def worse(found: Findings) -> list[str]:
    """Everything that got worse, or is not as promised."""
    dense, small = (found.figures.get(name, {}) for name in ("dense", "compressed"))
    return [*_answers(dense, small), *_times(dense, small), *_latency(found), *_layers(found.layers)]


def _answers(dense: Mapping[str, Any], small: Mapping[str, Any]) -> Iterator[str]:
    for key, title in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy")):
        if key in dense and key in small and small[key] < dense[key]:
            fell = dense[key] - small[key]
            yield f"{title} fell by {fell:.2f} points, from {dense[key]:.2f} % to {small[key]:.2f} %."
    if small.get("agreement", 100.0) < 100.0:
        yield f"{100 - small['agreement']:.2f} % of the answers differ from those of the dense network."
    if "relative_error" in small and small["relative_error"] > 0:
        yield f"The outputs differ by {small['relative_error']:.2%} of their size."
    if "perplexity" in dense and small.get("perplexity", 0.0) > dense["perplexity"]:
        yield f"Perplexity rose from {dense['perplexity']:.4g} to {small['perplexity']:.4g}."
    for key in ("bytes", "params", "macs"):
        if key in dense and key in small and small[key] > dense[key]:
            yield f"More {key} than the dense network: {small[key]:,} instead of {dense[key]:,}."


def _times(dense: Mapping[str, Any], small: Mapping[str, Any]) -> Iterator[str]:
    for engine, title in ENGINES.items():
        speedup = small.get(f"speedup_{engine}")
        if not speedup:
            continue
        if speedup["high"] is not None and speedup["high"] < 1:
            yield f"It is slower in {title}: {1 / speedup['median']:.2f} times the time of the dense network."
        elif speedup["low"] is None or speedup["low"] <= 1:
            yield f"In {title} no difference in time could be measured."


def _latency(found: Findings) -> Iterator[str]:
    time = None if found.plan is None else found.plan.latency
    if time is not None and abs(time.predicted / time.measured - 1) > OFF:
        yield (
            f"The predicted time of {time.predicted:.3g} ms is {abs(time.predicted / time.measured - 1):.0%} off the "
            f"measured {time.measured:.3g} ms."
        )


def _layers(layers: Sequence[Layer]) -> Iterator[str]:
    large = [layer for layer in layers if layer.predicted is not None and layer.predicted > LARGE]
    if large:
        names = ", ".join(f"{layer.name} ({layer.predicted:.1%})" for layer in large[:5])
        more = f" and {len(large) - 5} more" if len(large) > 5 else ""
        yield f"Layers with a predicted error above {LARGE:.0%}: {names}{more}."

"""Networks measured side by side: counts, latency, and measures that fit their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.json_values import json_value
from ..inputs.data import Data
from ..names import check_engine_name
from .judging import Judging, figures_by
from .teller import Teller, tried

if TYPE_CHECKING:
    from torch import nn

Figures = dict[str, dict[str, Any]]
DEFAULT_ENGINES = ("torch", "onnxruntime")
NOTHING_FACTORISED = "nothing is factorised: every layer is the dense one, so no speed is claimed"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How latency is measured: the engines, the threads, and the samples in a batch."""

    engines: tuple[str, ...]
    threads: int
    batch: int

    @classmethod
    def of(cls, engines: str, threads: int, batch: int) -> Timing:
        """From the options of the command line; `auto` is torch, and onnxruntime if it is installed.

        Raises:
            ValueError: for an unknown engine, a missing device, or a number below 1.
            ImportError: for an engine that is not installed.
        """
        if threads < 1 or batch < 1:
            raise ValueError(f"--threads {threads} and --latency-batch {batch} must be at least 1")
        if engines == "auto":
            complete = all(map(find_spec, ("onnxruntime", "onnx", "onnxscript")))
            names: tuple[str, ...] = DEFAULT_ENGINES if complete else DEFAULT_ENGINES[:1]
        else:
            names = tuple(name.strip() for name in engines.split(",")) if engines != "none" else ()
        for name in names:
            check_engine_name(name, ("auto", "none"), f"--engines {engines!r}: ")
        if engines != "auto" and names:
            from ..latency import get_engine

            for name in names:
                get_engine(name)  # a missing engine fails here, before the work
        return cls(engines=names, threads=threads, batch=batch)

    def document(self) -> dict[str, Any]:
        """For `--json`: how it was measured, and the load of the machine right after it."""
        from ..timing.load import cores, load

        return {**asdict(self), "load": load(), "cores": cores()}


def measure(out: Teller, networks: Mapping[str, nn.Module], data: Data, *, timing: Timing, judging: Judging) -> Figures:
    """Measure networks on the same data, a second one beside the first; a note says what cannot be measured, and why.

    Returns:
        `{"dense": {"params": ..., "top1": ...}, ...}`; latency in milliseconds with the interval of its median, and a
        second network's speed-up; accuracy in percent.
    """
    from ..evaluate import size

    example = data.example()
    figures: Figures = {}
    for name, network in networks.items():
        with out.step(f"counting {name}"):
            counted = size(network, example)
        figures[name] = {"params": counted.params, "macs": counted.macs, "bytes": counted.bytes}
    _latencies(out, networks, data, figures, timing)
    if data.real:
        for name, values in figures_by(out, networks, data, judging).items():
            figures[name] |= values
    return figures


def _latencies(out: Teller, networks: Mapping[str, nn.Module], data: Data, figures: Figures, timing: Timing) -> None:
    from ..evaluate import latency
    from ..layers.low_rank import is_factorised

    inputs = data.example(timing.batch)
    if timing.engines and len(networks) == 2 and not is_factorised(list(networks.values())[1]):
        out.say(NOTHING_FACTORISED)
        networks = dict(list(networks.items())[:1])
    for engine in timing.engines:
        with out.step(f"measuring latency in {engine}"):
            measured = partial(latency, networks, inputs, engine=engine, threads=timing.threads)
            times = tried(out, f"latency in {engine}", measured)
        for name, time in (times or {}).items():
            figures[name][f"latency_{engine}_ms"] = time.median * 1e3
            figures[name][f"latency_{engine}_ms_interval"] = [time.low * 1e3, time.high * 1e3]
        if times is not None and len(times) == 2:
            (_, first), (name, second) = times.items()
            figures[name][f"speedup_{engine}"] = asdict(first / second)


def figures_of(figures: Figures, data: Data) -> dict[str, Any]:
    """What the artifact stores: the figures, what they were measured on, and the shape of an input."""
    shape = getattr(data.example(), "shape", None)
    # The bytes of an artifact include this very file: they are counted, not stored.
    told = {
        name: {key: value for key, value in each.items() if (name, key) != ("compressed", "bytes")}
        for name, each in figures.items()
    }
    stored: dict[str, Any] = {"measured_on": data.name, **told}
    if shape is not None:
        stored["input_shape"] = list(shape[1:])
    return dict(_short(json_value(stored)))


def _short(value: Any) -> Any:
    """Round every number to six digits: measurements are no more precise."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def input_shape_of(artifact: Path) -> str | None:
    """The input shape that the artifact was measured with, as `--input-shape` takes it."""
    from ..artifact import read

    shape = read(artifact).figures.get("input_shape")
    return ",".join(map(str, shape)) if shape else None

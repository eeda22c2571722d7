"""Convert ONNX files to 16 and 8 bits with the tools of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .check import feed, session
from .compare import Arguments, first_line

LINEAR = ("MatMul", "Gemm")


def reduced(path: Path, dtype: str, batches: Sequence[Arguments]) -> None:
    """Rewrite a file in a smaller number type; inputs and outputs stay float32.

    `int8` rounds weights, per output channel, and activations, in the ranges of the batches. `int8-dynamic` rounds the
    weights of linear layers, and finds the ranges of their inputs at run time.

    Args:
        path: the file.
        dtype: "fp16", "int8" or "int8-dynamic".
        batches: arguments from which `int8` takes the ranges.

    Raises:
        ValueError: if onnxruntime's tools cannot write the file, or there is nothing to round.
    """
    try:
        _WRITERS[dtype](path, batches)
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"onnxruntime cannot write this network in {dtype}: {first_line(error)}") from error


def _fp16(path: Path, batches: Sequence[Arguments]) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def _int8(path: Path, batches: Sequence[Arguments]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            running = session(path)
            self.feeds: Iterator[dict[str, Any]] = (feed(running, given) for given in batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    eight = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8}
    quantize_static(_prepared(path), path, Reader(), per_channel=True, **eight)


def _int8_dynamic(path: Path, batches: Sequence[Arguments]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = _prepared(path)
    if not any(node.op_type in LINEAR for node in prepared.graph.node):
        raise ValueError("int8-dynamic rounds linear layers, and this network has none; take int8 with calibration")
    quantize_dynamic(prepared, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=list(LINEAR))


def _prepared(path: Path) -> Any:
    """The model with batch norms folded and constants computed, without shapes of intermediate values."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name(f"prepared-{path.name}")
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    model = onnx.load(ready)
    ready.unlink()
    # the quantiser fails on stale shapes of transposed weights
    del model.graph.value_info[:]
    return model


_WRITERS: dict[str, Callable[[Path, Sequence[Arguments]], None]] = {
    "fp16": _fp16,
    "int8": _int8,
    "int8-dynamic": _int8_dynamic,
}

"""Networks as onnxruntime runs them on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from ..export.check import feed, session
from ..export.extras import require
from ..files import temporary_folder
from .engine import Running, Work
from .onnx_chain import chain_file


class OnnxRuntime(Running):
    """onnxruntime on the CPU; layers are written directly, networks by `rankwise.export.onnx`."""

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "onnxruntime on the CPU"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        require("engine 'onnxruntime'", "onnx", "onnx", "onnxruntime", "onnxscript")

    @property
    def version(self) -> str:
        import onnxruntime  # not by package metadata: the package has several names

        return str(onnxruntime.__version__)

    def prepare(self, work: Work) -> Callable[[], object]:
        written = chain_file(work.module, *work.given[0]) if len(work.given[0]) == 1 and not work.given[1] else None
        if written is not None:
            running = session(written, self.threads)
            return partial(running.run, None, feed(running, work.given))
        from ..export.runners import once
        from ..export.to_onnx import onnx

        args, kwargs = work.given
        if args and kwargs:
            raise ValueError("onnxruntime runs networks with positional or with named inputs, not with both")
        with temporary_folder() as folder:
            # Only this batch size will run. The tolerance is wide: half precision rounds differently there.
            path = onnx(work.module, kwargs or args, folder / "model.onnx", dynamic_batch=False, tolerance=0.05)
            return once(path, work.given, self.threads)

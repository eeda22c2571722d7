"""Networks as ExecuTorch runs them with XNNPACK."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import ClassVar

from ..export.extras import require
from ..files import temporary_folder
from .engine import Running, Work


class ExecuTorch(Running):
    """ExecuTorch's runtime with XNNPACK; each layer is exported, which takes about a second."""

    name: ClassVar[str] = "executorch"
    summary: ClassVar[str] = "ExecuTorch with XNNPACK on the CPU"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        require("engine 'executorch'", "executorch", "executorch")

    @property
    def version(self) -> str:
        return version("executorch")

    def prepare(self, work: Work) -> Callable[[], object]:
        from ..export import executorch
        from ..export.runners import once

        args, kwargs = work.given
        with temporary_folder() as folder:
            path = executorch(work.module, kwargs or args, folder / "model.pte", tolerance=0.05)
            return once(path, work.given, self.threads)

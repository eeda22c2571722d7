"""Networks as ExecuTorch runs them with XNNPACK."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils import _pytree as pytree

from .engine import Running, Work


class ExecuTorch(Running):
    """ExecuTorch's runtime with XNNPACK; each layer is exported, which takes a second or so."""

    name: ClassVar[str] = "executorch"
    summary: ClassVar[str] = "ExecuTorch with XNNPACK on the CPU"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        try:
            import executorch.runtime  # noqa: F401
        except ImportError as error:
            raise ImportError(f"engine 'executorch' needs {error.name}: pip install 'rankwise[executorch]'") from error
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:  # one pool of the process, for all its programs
            portable_lib._unsafe_reset_threadpool(threads)

    @property
    def version(self) -> str:
        return version("executorch")

    def prepare(self, work: Work) -> Callable[[], object]:
        from executorch.runtime import Runtime, Verification

        from .. import export

        writer: Any = export
        args, kwargs = work.given
        with tempfile.TemporaryDirectory() as folder:
            path = writer.executorch(work.module, kwargs or args, Path(folder) / "model.pte", tolerance=0.05)
            program = Runtime.get().load_program(path, verification=Verification.Minimal)
        method = program.load_method("forward")
        inputs = [leaf.contiguous() for leaf in pytree.tree_leaves(work.given) if isinstance(leaf, Tensor)]

        def run(program: Any = program) -> object:  # a method does not keep its program alive
            return method.execute(inputs)

        return run

"""The fused kernel, where there is no GPU: interpreted, in a process of its own, and compiled for one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parents[1] / "support" / "interpreted_low_rank.py"
pytest.importorskip("triton", reason="Triton is not installed (extra dev, on Linux)")


@pytest.mark.long
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "34 passed" in ran.stdout


def test_it_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rankwise.kernels.triton_low_rank import _kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"HAS_BIAS": True, "WIDEN": False, "BLOCK_R": 16}
    constants |= {"BLOCK_M": 16, "BLOCK_I": 64, "BLOCK_O": 64, "SPLITS": 8}
    kinds = {
        name: "constexpr" if name in constants else "*fp16" if name.endswith("_ptr") else "i32"
        for name in _kernel.arg_names
    }
    source = ASTSource(fn=_kernel, signature=kinds, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    assert "mma.sync" in compiled.asm["ptx"]  # the products run on tensor cores
    assert compiled.metadata.shared <= 48 * 1024

"""`y = x V^T U^T + b` in one Triton kernel: the rank-R middle is never written to memory.

A program takes a block of rows. It reads the inputs once, computes all R numbers of the middle, which stay in
registers, and then its share of the outputs. With few rows, as at batch 1, several programs share the outputs of a
block of rows; each computes the middle again, from weights that are in the cache by then.

Sums are in float32; the middle is rounded to the dtype of the input, as in the plain chain.

Importing this module needs Triton, which comes with builds of torch for GPUs. Under `TRITON_INTERPRET=1` it runs on the
CPU, for tests.

Letters: M rows, I inputs, R rank, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Largest middle of a block that registers hold in float32: 64 rows of rank 256.
LARGEST_MIDDLE = 64 * 256
# Smallest side of a product on tensor cores.
SMALLEST_SIDE = 16


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr, v_ptr, u_ptr, b_ptr, y_ptr,
    M, I, O, R,  # noqa: E741
    x_row, x_column, v_row, v_column, u_row, u_column, y_row, y_column,
    HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    ranks = tl.arange(0, BLOCK_R)
    middle = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(0, I, BLOCK_I):
        inputs = start + tl.arange(0, BLOCK_I)
        x = tl.load(
            x_ptr + rows[:, None] * x_row + inputs[None, :] * x_column,
            mask=(rows[:, None] < M) & (inputs[None, :] < I),
            other=0.0,
        )
        v = tl.load(
            v_ptr + ranks[None, :] * v_row + inputs[:, None] * v_column,
            mask=(ranks[None, :] < R) & (inputs[:, None] < I),
            other=0.0,
        )
        if WIDEN:
            x, v = x.to(tl.float32), v.to(tl.float32)
        middle = tl.dot(x, v, middle, input_precision="ieee")
    rounded = middle.to(x_ptr.dtype.element_ty)
    if WIDEN:
        rounded = rounded.to(tl.float32)
    for start in range(tl.program_id(1) * BLOCK_O, O, SPLITS * BLOCK_O):
        outputs = start + tl.arange(0, BLOCK_O)
        u = tl.load(
            u_ptr + outputs[None, :] * u_row + ranks[:, None] * u_column,
            mask=(outputs[None, :] < O) & (ranks[:, None] < R),
            other=0.0,
        )
        if WIDEN:
            u = u.to(tl.float32)
        y = tl.dot(rounded, u, input_precision="ieee")
        if HAS_BIAS:
            y += tl.load(b_ptr + outputs, mask=outputs < O, other=0.0).to(tl.float32)[None, :]
        tl.store(
            y_ptr + rows[:, None] * y_row + outputs[None, :] * y_column,
            y.to(y_ptr.dtype.element_ty),
            mask=(rows[:, None] < M) & (outputs[None, :] < O),
        )


def _fitting(configs: list[Any], given: dict[str, Any], **_: Any) -> list[Any]:
    """Configurations whose middle fits into registers."""
    block_r = block_of_rank(given["R"])
    return [config for config in configs if config.kwargs["BLOCK_M"] * block_r <= LARGEST_MIDDLE]


_tuned = triton.autotune(
    configs=[
        triton.Config({"BLOCK_M": m, "BLOCK_I": i, "BLOCK_O": o, "SPLITS": splits}, num_warps=warps)
        for m, i, o, warps in ((16, 64, 128, 4), (32, 64, 64, 4), (64, 64, 64, 8), (128, 32, 64, 8))
        for splits in (1, 8, 32)
    ],
    key=["M", "I", "O", "R"],
    prune_configs_by={"early_config_prune": _fitting},
)(_kernel)


def block_of_rank(rank: int) -> int:
    """The rank, rounded up to a legal block size."""
    return max(SMALLEST_SIDE, triton.next_power_of_2(rank))


def fused(x: Tensor, V_RI: Tensor, U_OR: Tensor, bias: Tensor | None, blocks: dict[str, int] | None = None) -> Tensor:
    """`low_rank_linear` in one kernel; `blocks` are its BLOCK_M, BLOCK_I, BLOCK_O and SPLITS, else tuned per shape."""
    x_MI = x.reshape(-1, x.shape[-1])
    (M, I), (O, R) = x_MI.shape, U_OR.shape  # noqa: E741
    y_MO = torch.empty(M, O, device=x.device, dtype=x.dtype)
    if M == 0:
        return y_MO.reshape(*x.shape[:-1], O)

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(M, meta["BLOCK_M"]), min(meta["SPLITS"], triton.cdiv(O, meta["BLOCK_O"]))

    kernel: Any = _tuned if blocks is None else _kernel
    with torch.cuda.device_of(x_MI):  # Triton launches on the current device
        kernel[grid](
            *(x_MI, V_RI, U_OR, y_MO if bias is None else bias, y_MO),
            *(M, I, O, R),
            *(*x_MI.stride(), *V_RI.stride(), *U_OR.stride(), *y_MO.stride()),
            HAS_BIAS=bias is not None,
            # On a CPU only the interpreter runs, which would multiply the bits of bfloat16 as whole numbers.
            WIDEN=x.device.type == "cpu" and x.dtype == torch.bfloat16,
            BLOCK_R=block_of_rank(R),
            **(blocks or {}),
        )
    return y_MO.reshape(*x.shape[:-1], O)

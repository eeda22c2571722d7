"""A linear layer of low rank: one fused kernel on a GPU, two products elsewhere.

Letters: I inputs, R rank, O outputs.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

# Largest rank at which the middle and a tile of each factor fit on chip. In float32 tiles are twice as large, and their
# exact products unroll into code that takes minutes to compile.
LARGEST_RANK = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 64}


def low_rank_linear(x: Tensor, V_RI: Tensor, U_OR: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose weight is a product of two thin factors: `y = x V^T U^T + b`.

    On a CUDA device one kernel keeps the R numbers in the middle on chip. On other devices, and where `why_plain` gives
    a reason, it is two products.

    Args:
        x: any leading dimensions, I inputs last.
        V_RI: first factor.
        U_OR: second factor.
        bias: O numbers, or None.

    Returns:
        The same leading dimensions, O outputs last.

    Example:
        >>> x, V_RI, U_OR = torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 1)
        >>> low_rank_linear(x, V_RI, U_OR, torch.ones(4))
        tensor([[4., 4., 4., 4.],
                [4., 4., 4., 4.]])
    """
    if why_plain(x, V_RI, U_OR, bias) is None:
        from .triton_low_rank import fused

        return fused(x, V_RI, U_OR, bias)
    return F.linear(F.linear(x, V_RI), U_OR, bias)


def why_plain(x: Tensor, V_RI: Tensor, U_OR: Tensor, bias: Tensor | None = None) -> str | None:
    """Why two products run instead of the kernel; None if the kernel runs."""
    if x.device.type != "cuda":
        return f"there is no fused kernel for {x.device.type}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    tensors = [tensor for tensor in (x, V_RI, U_OR, bias) if tensor is not None]
    if len({tensor.device for tensor in tensors}) > 1:
        return "factors and inputs are on several devices"
    if len({tensor.dtype for tensor in tensors}) > 1 or x.dtype not in LARGEST_RANK:
        return f"the kernel is for factors and inputs of one of {', '.join(map(str, LARGEST_RANK))}"
    if len(V_RI) > LARGEST_RANK[x.dtype]:
        return f"rank {len(V_RI)} is above {LARGEST_RANK[x.dtype]}, the largest that fits on chip in {x.dtype}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the kernel has no gradient"
    return None

"""The fused linear layer on devices that have no kernel: two products, and the reason for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rankwise.kernels import low_rank_linear
from rankwise.kernels.linear import LARGEST_RANK, why_plain


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_two_products_on_the_cpu(lead: tuple[int, ...], biased: bool) -> None:
    x, V, U = torch.randn(*lead, 12), torch.randn(4, 12), torch.randn(7, 4)
    bias = torch.randn(7) if biased else None
    wanted = F.linear(x, U @ V, bias)
    assert torch.allclose(low_rank_linear(x, V, U, bias), wanted, atol=1e-4)


def test_gradients_flow() -> None:
    x, V, U = (torch.randn(size, requires_grad=True) for size in ((3, 5), (2, 5), (4, 2)))
    low_rank_linear(x, V, U).sum().backward()
    assert all(tensor.grad is not None for tensor in (x, V, U))


class OnCuda:
    """What `why_plain` looks at, of a tensor on a GPU that is not there."""

    def __init__(self, rank: int, dtype: torch.dtype, requires_grad: bool = False, index: int = 0) -> None:
        self.device, self.dtype, self.requires_grad = torch.device("cuda", index), dtype, requires_grad
        self.rank = rank

    def __len__(self) -> int:
        return self.rank


def reason(rank: int = 8, dtype: torch.dtype = torch.float16, requires_grad: bool = False) -> str | None:
    tensor = OnCuda(rank, dtype, requires_grad)
    return why_plain(tensor, tensor, tensor)  # type: ignore[arg-type]


def test_why_there_are_two_products() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (extra dev, on Linux)")
    assert "no fused kernel for cpu" in str(why_plain(*[torch.zeros(1, 1)] * 3))
    assert reason() is None
    for dtype, most in LARGEST_RANK.items():
        assert reason(most, dtype) is None
        assert f"rank {most + 1} is above {most}" in str(reason(most + 1, dtype))
    assert "one of torch.float16" in str(reason(dtype=torch.float64))
    assert reason(requires_grad=True) == "the kernel has no gradient"
    with torch.no_grad():
        assert reason(requires_grad=True) is None
    plain, trained, far = (OnCuda(8, torch.float16, *other) for other in ((), (True,), (False, 1)))
    assert why_plain(plain, plain, plain, trained) == "the kernel has no gradient"  # type: ignore[arg-type]
    assert why_plain(plain, plain, far) == "factors and inputs are on several devices"  # type: ignore[arg-type]

"""The weight of a factorised layer as other code sees it: shape, dtype and device are known, values computed late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# What other code may read without the values: attributes, and methods without arguments.
_ATTRIBUTES = (
    *("dtype", "device", "layout", "shape", "ndim", "names", "requires_grad", "is_leaf", "grad", "grad_fn"),
    *("itemsize", "nbytes", "is_meta", "is_cpu", "is_cuda", "is_mps", "is_xpu", "is_sparse", "is_quantized"),
    *("is_nested", "is_mkldnn"),
)
_METHODS = (
    *("size", "dim", "numel", "nelement", "ndimension", "stride", "element_size", "get_device", "is_contiguous"),
    *("is_floating_point", "is_complex", "is_signed", "is_inference", "storage_offset", "__len__", "__hash__"),
)


class LazyWeight(Tensor):
    """A tensor that is computed only when its values are needed.

    Many models read `layer.weight.dtype` or `.device` in every forward, which must not multiply the factors. Every
    other operation computes the weight anew, so that gradients reach the factors.

    Args:
        compute: makes the values.
        like: a tensor with the dtype and device of the values.
        shape: of the values.
        requires_grad: whether gradients reach the factors.

    Example:
        >>> weight = LazyWeight(lambda: torch.ones(2, 3), torch.zeros(()), (2, 3), False)
        >>> weight.shape, float(weight.sum())
        (torch.Size([2, 3]), 6.0)
    """

    _compute: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, compute: Callable[[], Tensor], like: Tensor, shape: tuple[int, ...], requires_grad: bool
    ) -> LazyWeight:
        made = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=like.dtype, device=like.device, requires_grad=requires_grad
        )
        made._compute = compute
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def values(self) -> Tensor:
        """The weight itself."""
        return self._compute()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _FREE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        writes = name == "__set__" or (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        if writes and args and isinstance(args[0], cls):
            raise ValueError(
                "the weight of a factorised layer is computed from its factors and cannot be written to; change the "
                "parameters of the layers inside, or call requires_grad_() on the layer itself"
            )
        args, kwargs = pytree.tree_map_only(cls, cls.values, (args, dict(kwargs or {})))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(cls, cls.values, (args, dict(kwargs or {})))
        return func(*args, **kwargs)


_FREE = frozenset(
    [getattr(Tensor, name).__get__ for name in _ATTRIBUTES if hasattr(Tensor, name)]
    + [getattr(Tensor, name) for name in _METHODS if hasattr(Tensor, name)]
    + [torch.is_floating_point, torch.is_complex, torch.is_tensor, torch.numel]
)

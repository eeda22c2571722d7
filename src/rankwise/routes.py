"""Follow one forward pass to the layers whose rows the network itself chooses.

A mixture of experts, the pruning of tokens or an early exit sends rows where computed values say. In another network,
whose values differ, the n-th row of such a layer may be another one, so that rows of two networks are no pairs.
Everything is followed by the memory that it lies in, whatever views of it are taken and written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .kinds import site_kind

# Operator -> positions of the indices among its arguments; their dimension stands between, where there is one.
_PICKS = {
    "index": 1,
    "_unsafe_index": 1,
    "index_select": 2,
    "gather": 2,
    "take": 1,
    "masked_select": 1,
    "embedding": 1,
    "embedding_bag": 1,
    "_embedding_bag": 1,
}
# The result is a selection of what goes in.
_SELECTIONS = ("unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive")
# These put rows back into places of their own: the result is ordered like the tensor that they are put into.
_PUTS = ("index_add", "index_copy", "index_put", "_index_put_impl", "index_reduce", "scatter", "scatter_add")
_PUTS += ("scatter_reduce", "masked_scatter", "put", "index_fill")
# What two factors among the arguments of a product are.
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1), "_grouped_mm": (0, 1)}
# Operators that read no values, only sizes.
_SIZES = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")
# Functions that check values: whatever they find, the network goes on as before, or fails.
_CHECKS = ("isnan", "isinf", "isfinite", "one_hot")
_READS = ("tolist", "numpy", "__array__")


class _Mark(NamedTuple):
    """What is known of a tensor.

    Attributes:
        computed: whether its values depend on a layer's output.
        moved: the operator by which computed values chose its rows, None where they have their own order.
        choice: whether it holds decisions alone: indices or masks that are computed, or products of them.
    """

    computed: bool = False
    moved: str | None = None
    choice: bool = False


_NOTHING = _Mark()


class Routes(TorchDispatchMode):
    """Context that follows one forward pass of a model; hooks are removed on leaving.

    Args:
        model: the model.

    Attributes:
        unpaired: name of a layer of a site's kind -> why its rows in two networks are no pairs.

    Example:
        >>> class Pruned(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.score, self.last = nn.Linear(4, 1), nn.Linear(4, 2)
        ...
        ...     def forward(self, x):
        ...         return self.last(x[self.score(x).flatten().topk(2).indices])
        >>> model = Pruned()
        >>> with torch.no_grad(), Routes(model) as routes:
        ...     _ = model(torch.randn(6, 4))
        >>> routes.unpaired
        {'last': 'the network chooses its rows (index)'}
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.unpaired: dict[str, str] = {}
        self._layers = {name: module for name, module in model.named_modules() if site_kind(module)}
        # Weak references keep an address from being used again, not the memory.
        self._marks: dict[int, tuple[StorageWeakRef, _Mark]] = {}
        self._steered = ""
        self._checking = False
        self._stack = ExitStack()

    def __enter__(self) -> Routes:
        for name, layer in self._layers.items():
            for handle in self._hooks(name, layer):
                self._stack.callback(handle.remove)
        self._stack.enter_context(_Functions(self))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _hooks(self, name: str, layer: nn.Module) -> Iterator[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mark = self._of((args, kwargs))
            if self._steered:
                self.unpaired.setdefault(name, f"the network decides before it how to go on ({self._steered})")
            elif mark.moved:
                self.unpaired.setdefault(name, f"the network chooses its rows ({mark.moved})")

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._put(output, _Mark(True, self._of((args, kwargs)).moved))

        yield layer.register_forward_pre_hook(before, with_kwargs=True)
        yield layer.register_forward_hook(after, prepend=True, with_kwargs=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = self._of((args, kwargs))  # before the call, which may write to them
        mark = _NOTHING if given == _NOTHING or self._checking else self._result(func, args, kwargs, given)
        output = func(*args, **kwargs)
        if mark != _NOTHING or not func.is_view:
            self._put(output, mark)
        return output

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: _Mark) -> _Mark:
        name = func.overloadpacket.__name__.rstrip("_")
        values = [*args, *kwargs.values()]
        if name == "_local_scalar_dense" and given.computed:
            self.steer("a value is read")
        if name.startswith(_SIZES):
            return _Mark(moved=given.moved)
        moved = self._of(values[:1]).moved if name in _PUTS else given.moved
        if not moved and self._chosen(name, values):
            moved = name
        return given._replace(moved=moved)

    def _chosen(self, name: str, values: list[Any]) -> bool:
        """Whether an operator moves rows to where computed values say."""
        if name in _SELECTIONS:
            return self._of(values[:1]).computed
        if name in _PRODUCTS:  # with a mask of decisions, as capacity-limited experts are fed
            marks = [self._of(values[position]) for position in _PRODUCTS[name]]
            return all(mark.computed for mark in marks) and any(mark.choice for mark in marks)
        if name not in _PICKS or not self._of(values[_PICKS[name]]).computed:
            return False
        if not isinstance(values[0], Tensor) or values[0].dim() != 2:
            return True
        if name in ("gather", "index_select"):  # of rows by features, features of the same row are picked
            return values[1] % 2 == 0
        return name != "index" or self._of(values[1][0]).computed

    def steer(self, by: str) -> None:
        """From here on the forward depends on a computed value."""
        self._steered = self._steered or by

    def computed(self, values: Any) -> bool:
        """Whether one of some tensors is computed."""
        return self._of(values).computed

    def _of(self, values: Any) -> _Mark:
        """What is known of tensors together."""
        marks = [self._marks[key][1] for key in map(_memory, tree_leaves(values)) if key in self._marks]
        if not marks:
            return _NOTHING
        computed = [mark for mark in marks if mark.computed]
        return _Mark(
            computed=bool(computed),
            moved=next((mark.moved for mark in marks if mark.moved), None),
            choice=bool(computed) and all(mark.choice for mark in computed),
        )

    def _put(self, values: Any, mark: _Mark) -> None:
        for tensor in tree_leaves(values):
            if key := _memory(tensor):
                decision = mark.computed and (mark.choice or not (tensor.is_floating_point() or tensor.is_complex()))
                if mark == _NOTHING:
                    self._marks.pop(key, None)
                else:
                    reference = StorageWeakRef(tensor.untyped_storage())
                    self._marks[key] = (reference, mark._replace(choice=decision))


class _Functions(TorchFunctionMode):
    """Sees what operators do not tell: values that are read at once, and checks inside of functions."""

    def __init__(self, routes: Routes) -> None:
        super().__init__()
        self.routes = routes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _READS and self.routes.computed(args):
            self.routes.steer("a value is read")
        if name == "tensor_split" and self.routes.computed([*args[1:], *kwargs.values()]):
            self.routes.steer("a split")
        if name not in _CHECKS or self.routes._checking:
            return func(*args, **kwargs)
        self.routes._checking = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.routes._checking = False
        if name == "one_hot":  # it checks its indices, and is computed from them all the same
            self.routes._put(result, self.routes._of(args))
        return result


def _memory(value: Any) -> int:
    """A number of the memory that a tensor lies in; 0 for what has none."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return 0
    return value.untyped_storage()._cdata

"""Find the layers whose input rows the network picks itself: experts, kept tokens, the best of a beam.

Two networks pick differently, so their rows cannot be paired. One forward pass is watched operator by operator: which
values are computed from the outputs of layers, and which rows of activations they pick or reorder. Rows written back to
where they were (`index_add`), or picked by the inverse of an order, are in place again. Sorted values are in place too:
they are paired by rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..layers.kinds import site_kind
from ..running.exclusive import hooked
from ..running.guards import in_words
from ..running.state import has_memory

# Operator -> place of the argument that says which rows of the first one come out. The axis, if any, is argument 1.
_PICKS = {"index": 1, "_unsafe_index": 1, "index_select": 2, "gather": 2, "take": 1, "masked_select": 1}
# Operators that drop repeated rows: how many stay, and which, depends on the values.
_SELECTIONS = ("unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive")
# Operators that write into rows of the first argument: the result has that argument's rows, in its order.
_WRITES = (
    *("index_add", "index_copy", "index_put", "_index_put_impl", "index_reduce", "index_fill"),
    *("scatter", "scatter_add", "scatter_reduce", "masked_scatter", "put"),
)
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
# Operators that read only the size of the first argument, so that nothing computed goes into the result.
_SIZES = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")


@dataclass(frozen=True)
class _Mark:
    """What is known about a block of memory.

    Attributes:
        given: made from the batch.
        computed: made from outputs of layers.
        choice: a computed decision: indices, masks, or numbers made from these alone.
        moved: who picked its rows, in words; "" where they are in place.
        moved_by: the order that picked them, 0 where no inverse can put them back.
        order: the order (result of a sort) that it is, or is made from; 0 for none.
        inverse: the order that it undoes, 0 for none.
    """

    given: bool = False
    computed: bool = False
    choice: bool = False
    moved: str = ""
    moved_by: int = 0
    order: int = 0
    inverse: int = 0


_NOTHING = _Mark()


class Routes(TorchDispatchMode):
    """Context that watches one forward pass.

    Args:
        model: the network; its hooks are removed on leaving.

    Attributes:
        picked: layer name -> the operator and the module that picked its rows, in words.

    Example:
        >>> import torch
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
        >>> routes.picked
        {'last': 'index in Pruned (the model itself)'}
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.picked: dict[str, str] = {}
        self._model = model
        self._names = {module: name for name, module in reversed(list(model.named_modules()))}
        # The weak reference keeps the storage's handle, which is the key, from being reused, but frees its memory.
        self._marks: dict[int, tuple[StorageWeakRef, _Mark]] = {}
        # A computed value became a Python number. From then on a tensor made from Python numbers may depend on it.
        self._has_read = False
        self._running: list[nn.Module] = []

    def __enter__(self) -> Routes:
        self._stack = hooked(self._model, self._before, self._after)
        self._stack.enter_context(_Reads(self))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        if len(self._running) == 1:
            self._put((args, kwargs), _Mark(given=True))
        if site_kind(module) and (moved := self._of((args, kwargs)).moved):
            self.picked.setdefault(self._names[module], moved)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._running.pop()
        if site_kind(module):
            before = self._of((args, kwargs))
            self._put(output, _Mark(computed=True, moved=before.moved, moved_by=before.moved_by))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "lift_fresh":  # torch.tensor(...) of Python numbers
            mark = _Mark(computed=self._has_read)
        else:
            given = self._of((args, kwargs))  # before the call, which may write into its arguments
            mark = _NOTHING if given == _NOTHING else self._result(name, (*args, *kwargs.values()), given)
        output = func(*args, **kwargs)
        # A view shares the memory, and so the mark, of what it views: only a new mark may replace that one.
        if mark != _NOTHING or not func.is_view:
            self._put(output, mark)
        if mark.computed and name in ("sort", "argsort"):
            self._note_order(args[0], output if isinstance(output, Tensor) else output[1])
        return output

    def read(self, values: Any) -> None:
        """Note that values of tensors become Python numbers."""
        self._has_read = self._has_read or self._of(values).computed

    def _result(self, name: str, values: tuple[Any, ...], given: _Mark) -> _Mark:
        """The mark of an operator's output."""
        first = self._of(values[0])
        if name == "_local_scalar_dense":
            self.read(values)
        if name.startswith(_SIZES):
            return _Mark(moved=first.moved, moved_by=first.moved_by)
        index = self._of(values[_PICKS[name]]) if name in _PICKS else _NOTHING
        if name in _WRITES:
            given = replace(given, moved=first.moved, moved_by=first.moved_by)
            # Integers written at the places of an order are its inverse: inverse[order] = arange(n).
            orders = {self._of(each).order for each in values[1:]} - {0}
            if orders and not values[0].is_floating_point():
                given = replace(given, order=0, inverse=orders.pop())
        elif name in _PICKS and first.moved and 0 != first.moved_by == index.inverse:
            given = replace(given, moved="", moved_by=0, inverse=0)
        elif not given.moved and (first.given or first.computed) and self._picks(name, values):
            module = self._running[-1] if self._running else self._model
            given = replace(given, moved=f"{name} in {in_words(module, self._names[module])}", moved_by=index.order)
        return given

    def _picks(self, name: str, values: tuple[Any, ...]) -> bool:
        """Whether an operator moves rows of its first argument to where computed values say."""
        if name in _SELECTIONS:
            return self._of(values[0]).computed and _moves(values[0])
        if name in _PRODUCTS:  # experts of limited capacity get their rows through a product with a one-hot mask
            factors = [self._of(values[place]) for place in _PRODUCTS[name]]
            return all(factor.computed for factor in factors) and any(factor.choice for factor in factors)
        if name not in _PICKS or not self._of(values[_PICKS[name]]).computed or not _moves(values[0]):
            return False
        last = values[0].dim() - 1  # picking along the last axis picks features, not rows
        if name in ("index", "_unsafe_index"):
            return last == 0 or any(self._of(index).computed for index in values[1][:last])
        return last == 0 or name in ("take", "masked_select") or values[1] % (last + 1) != last

    def _note_order(self, values: Tensor, indices: Tensor) -> None:
        """Mark the indices of a sort: a new order, or, where an order was sorted, its inverse."""
        mark, before = self._of(indices), self._of(values).order
        self._put(indices, replace(mark, order=0, inverse=before) if before else replace(mark, order=_memory(indices)))

    def _of(self, values: Any) -> _Mark:
        """What is known about tensors together."""
        marks = [self._marks[place][1] for place in map(_memory, tree_leaves(values)) if place in self._marks]
        if len(marks) < 2:
            return marks[0] if marks else _NOTHING
        computed = [mark for mark in marks if mark.computed]
        moved = next((mark for mark in marks if mark.moved), _NOTHING)
        return _Mark(
            given=any(mark.given for mark in marks),
            computed=bool(computed),
            choice=bool(computed) and all(mark.choice for mark in computed),
            moved=moved.moved,
            moved_by=moved.moved_by if all(mark.moved_by == moved.moved_by for mark in marks if mark.moved) else 0,
            order=_sole(mark.order for mark in computed),
            inverse=_sole(mark.inverse for mark in computed),
        )

    def _put(self, values: Any, mark: _Mark) -> None:
        for tensor in tree_leaves(values):
            if place := _memory(tensor):
                if mark == _NOTHING:
                    self._marks.pop(place, None)
                    continue
                # Indices and masks made from activations are choices; activations are never an order.
                choice = mark.computed and (mark.choice or not _moves(tensor))
                order, inverse = (0, 0) if _moves(tensor) else (mark.order, mark.inverse)
                own = replace(mark, choice=choice, order=order, inverse=inverse)
                self._marks[place] = (StorageWeakRef(tensor.untyped_storage()), own)


class _Reads(TorchFunctionMode):
    """Sees values that are read without an operator, and forgives a function that reads only to check."""

    def __init__(self, routes: Routes) -> None:
        super().__init__()
        self.routes = routes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, before = getattr(func, "__name__", ""), self.routes._has_read
        if name in ("tolist", "numpy", "__array__"):
            self.routes.read(args)
        result = func(*args, **(kwargs or {}))
        if name == "one_hot":  # reads its largest index for the number of classes, which picks no rows
            self.routes._has_read = before
        return result


def _moves(tensor: Tensor) -> bool:
    """Whether a tensor holds activations, not indices or masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def _sole(orders: Any) -> int:
    found = set(orders)
    return found.pop() if len(found) == 1 else 0


def _memory(value: Any) -> int:
    """The number of the memory block that a tensor lies in; 0 where there is none."""
    if not isinstance(value, Tensor) or not has_memory(value):
        return 0
    return int(value.untyped_storage()._cdata)

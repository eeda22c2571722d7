"""Which layers get rows that the network itself has picked: experts, tokens that are kept, the best of a beam.

Two networks pick differently, so that their rows are no pairs. One forward pass is watched operator by operator: what
is computed from the outputs of layers, and which rows of activations are picked or put into another order by it. What
is written back into rows of its own (`index_add`), or picked by the inverse of an order, is in place again. Sorted
values are in place too: they are paired by their rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..layers.kinds import site_kind
from ..running.exclusive import own_thread
from ..running.state import has_memory

# Operators whose argument at this place says which rows of the first one come out; the axis stands between.
_PICKS = {"index": 1, "_unsafe_index": 1, "index_select": 2, "gather": 2, "take": 1, "masked_select": 1}
# Operators that leave out what occurs again.
_SELECTIONS = ("unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive")
# Operators that write into rows of the first argument, which stay where they are.
_WRITES = (
    *("index_add", "index_copy", "index_put", "_index_put_impl", "index_reduce", "index_fill"),
    *("scatter", "scatter_add", "scatter_reduce", "masked_scatter", "put"),
)
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
# Operators that read the size of the first argument alone.
_SIZES = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")


@dataclass(frozen=True)
class _Mark:
    """What is known of a block of memory.

    Attributes:
        given: whether it is made from the batch.
        computed: whether it is made from outputs of layers.
        choice: whether it is a computed decision: indices, masks, or numbers made of these alone.
        moved: who has picked its rows, in words; "" where they are in place.
        moved_by: the order that they were picked by, 0 for none that could be put back.
        order: the order that it is, or is made of; 0 for none.
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
        # A weak reference keeps an address from being used again, not the memory.
        self._marks: dict[int, tuple[StorageWeakRef, _Mark]] = {}
        self._has_read = False  # a computed value was read: what is made of Python's numbers may depend on it
        self._running: list[nn.Module] = []
        self._stack = ExitStack()

    def __enter__(self) -> Routes:
        for module in self._model.modules():
            for handle in (
                module.register_forward_pre_hook(own_thread(self._before), with_kwargs=True),
                module.register_forward_hook(own_thread(self._after), prepend=True, with_kwargs=True, always_call=True),
            ):
                self._stack.callback(handle.remove)
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
        if name == "lift_fresh":  # a tensor of Python's numbers
            mark = _Mark(computed=self._has_read)
        else:
            given = self._of((args, kwargs))  # before the call, which may write into them
            mark = _NOTHING if given == _NOTHING else self._result(name, (*args, *kwargs.values()), given)
        output = func(*args, **kwargs)
        if mark != _NOTHING or not func.is_view:
            self._put(output, mark)
        if mark.computed and name in ("sort", "argsort"):
            self._note_order(args[0], output if isinstance(output, Tensor) else output[1])
        return output

    def read(self, values: Any) -> None:
        """Values of tensors become Python's numbers."""
        self._has_read = self._has_read or self._of(values).computed

    def _result(self, name: str, values: tuple[Any, ...], given: _Mark) -> _Mark:
        """What is known of what an operator makes."""
        first = self._of(values[0])
        if name == "_local_scalar_dense":
            self.read(values)
        if name.startswith(_SIZES):
            return _Mark(moved=first.moved, moved_by=first.moved_by)
        if name in _WRITES:
            given = replace(given, moved=first.moved, moved_by=first.moved_by)
            orders = {self._of(index).order for index in values[1:]} - {0}
            if orders and not values[0].is_floating_point():
                given = replace(given, order=0, inverse=orders.pop())
        elif name in _PICKS and first.moved and 0 != first.moved_by == self._of(values[_PICKS[name]]).inverse:
            given = replace(given, moved="", moved_by=0, inverse=0)
        elif not given.moved and (first.given or first.computed) and self._picks(name, values):
            module = self._running[-1] if self._running else self._model
            where = f"{type(module).__name__} ({self._names[module] or 'the model itself'})"
            index = self._of(values[_PICKS[name]]) if name in _PICKS else _NOTHING
            given = replace(given, moved=f"{name} in {where}", moved_by=index.order)
        return given

    def _picks(self, name: str, values: tuple[Any, ...]) -> bool:
        """Whether an operator takes rows of its first argument to where computed values say."""
        if name in _SELECTIONS:
            return self._of(values[0]).computed and _moves(values[0])
        if name in _PRODUCTS:  # with a mask of decisions, which is how experts of a capacity are fed
            factors = [self._of(values[place]) for place in _PRODUCTS[name]]
            return all(factor.computed for factor in factors) and any(factor.choice for factor in factors)
        if name not in _PICKS or not self._of(values[_PICKS[name]]).computed or not _moves(values[0]):
            return False
        last = values[0].dim() - 1  # features of a row are no rows
        if name in ("index", "_unsafe_index"):
            return last == 0 or any(self._of(index).computed for index in values[1][:last])
        return last == 0 or name in ("take", "masked_select") or values[1] % (last + 1) != last

    def _note_order(self, values: Tensor, indices: Tensor) -> None:
        mark = self._of(indices)
        sorted_order = self._of(values).order
        here = replace(mark, order=0, inverse=sorted_order) if sorted_order else replace(mark, order=_memory(indices))
        self._put(indices, here)

    def _of(self, values: Any) -> _Mark:
        """What is known of tensors together."""
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
                choice = mark.computed and (mark.choice or not _moves(tensor))
                order, inverse = (0, 0) if _moves(tensor) else (mark.order, mark.inverse)
                own = replace(mark, choice=choice, order=order, inverse=inverse)
                self._marks[place] = (StorageWeakRef(tensor.untyped_storage()), own)


class _Reads(TorchFunctionMode):
    """Sees values that are read without an operator, and the checks of a function that reads without consequence."""

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
        if name == "one_hot":  # looks at its largest index
            self.routes._has_read = before
        return result


def _moves(tensor: Tensor) -> bool:
    """Whether it holds activations, not indices or masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def _sole(orders: Any) -> int:
    found = set(orders)
    return found.pop() if len(found) == 1 else 0


def _memory(value: Any) -> int:
    """A number of the block of memory that a tensor lies in; 0 for what has none."""
    if not isinstance(value, Tensor) or not has_memory(value):
        return 0
    return int(value.untyped_storage()._cdata)

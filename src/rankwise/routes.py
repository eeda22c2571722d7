"""Which layers get rows that the network itself has picked: experts, tokens that are kept, the best of a beam.

Two networks pick differently, so that their rows are no pairs. One forward pass is watched operator by operator: what
is computed from the outputs of layers, and which rows of activations are picked or put into another order by it. What
is written back into rows of its own (`index_add`) is in place again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .kinds import site_kind
from .state import storage_of

# Operators whose other arguments say which rows of the first one come out.
_PICKS = re.compile(r"^(index|index_select|gather|take|take_along_dim|masked_select|repeat_interleave)$")
# Operators that put the rows of the first argument into an order of their values.
_SORTS = re.compile(r"^(sort|topk|msort|unique\w*|_unique\w*)$")
# Operators that write into rows of the first argument, which stay where they are.
_WRITES = re.compile(
    r"^_?(index_add|index_copy|index_put|index_put_impl|index_reduce|index_fill|scatter\w*|masked_scatter)_?$"
)


class Routes(TorchDispatchMode):
    """Context that watches one forward pass.

    Args:
        model: the network; its hooks are removed on leaving.

    Attributes:
        picked: layer name -> the operator and the module that picked its rows, in words.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.picked: dict[str, str] = {}
        self._model = model
        self._names = {module: name for name, module in reversed(list(model.named_modules()))}
        # Blocks of memory with what is in them. Tensors are held, so that none takes the memory of another.
        self._given: dict[int, Tensor] = {}  # made from the batch
        self._computed: dict[int, Tensor] = {}  # made from outputs of layers
        self._moved: dict[int, tuple[Tensor, str, int]] = {}  # by whom, and by which order
        # Orders that were computed, and their inverses: block of memory -> (tensor, block of the order).
        self._orders: dict[int, Tensor] = {}
        self._inverses: dict[int, tuple[Tensor, int]] = {}
        self._running: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Routes:
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, prepend=True, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(self._running) == 1:
            self._given.update({storage_of(tensor): tensor for tensor in given if storage_of(tensor)})
        if site_kind(module):
            for tensor in given:
                if moved := self._moved.get(storage_of(tensor)):
                    self.picked.setdefault(self._names[module], moved[1])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        if site_kind(module) and isinstance(output, Tensor) and storage_of(output):
            self._computed[storage_of(output)] = output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        moved = self._moves(name, args, given)
        self._note_order(name, args, output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (place := storage_of(tensor)):
                if any(storage_of(each) in self._given for each in given):
                    self._given[place] = tensor
                if any(storage_of(each) in self._computed for each in given):
                    self._computed[place] = tensor
                if moved is not None:
                    self._moved[place] = (tensor, *moved)
        return output

    def _moves(self, name: str, args: tuple[Any, ...], given: list[Tensor]) -> tuple[str, int] | None:
        """Who has moved the rows of what an operator makes, and by which order; None where they are in place."""
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if _WRITES.match(name) and first is not None:
            given = [first]
        for tensor in given:
            if tensor.is_floating_point() and (before := self._moved.get(storage_of(tensor))):
                back = any(self._inverses.get(storage_of(each), (each, -1))[1] == before[2] for each in given)
                return None if back and tensor is first and _PICKS.match(name) else before[1:]
        if first is None or not self._is_activation(first):
            return None
        computes = any(self._computed.get(storage_of(each)) is not None for each in given if each is not first)
        if (_PICKS.match(name) and computes and self._by_rows(name, args)) or (
            _SORTS.match(name) and storage_of(first) in self._computed and self._by_rows(name, args)
        ):
            module = self._running[-1] if self._running else self._model
            where = self._names[module]
            order = next((storage_of(each) for each in given if storage_of(each) in self._orders), 0)
            return f"{name} in {type(module).__name__} ({where or 'the model itself'})", order
        return None

    def _note_order(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """Keep what sorts, and the inverse of it: an order that is sorted itself, or is scattered to."""
        if name in ("sort", "argsort"):
            made = output if isinstance(output, Tensor) else output[1]
            if storage_of(args[0]) in self._orders:
                self._inverses[storage_of(made)] = (made, storage_of(args[0]))
            else:
                self._orders[storage_of(made)] = made
        elif name in ("index_put_", "scatter_") and not output.is_floating_point():
            for index in tree_leaves(args[1:]):
                if isinstance(index, Tensor) and storage_of(index) in self._orders:
                    self._inverses[storage_of(output)] = (output, storage_of(index))

    def _is_activation(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and (
            storage_of(tensor) in self._given or storage_of(tensor) in self._computed
        )

    def _by_rows(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether it is rows that are picked, not the features within them."""
        last = args[0].dim() - 1
        if name == "index":
            places = [axis for axis, index in enumerate(args[1]) if index is not None]
            return last == 0 or any(axis < last for axis in places)
        at = {"index_select": 1, "gather": 1, "take_along_dim": 2, "sort": 1, "topk": 2, "repeat_interleave": 2}
        if name not in at:
            return True
        axis = args[at[name]] if len(args) > at[name] and isinstance(args[at[name]], int) else last
        return last == 0 or axis % (last + 1) != last

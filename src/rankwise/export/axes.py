"""Input axes that stay open (dynamic) in an exported file: the batch, lengths and picture sizes.

`torch.export` says which sizes a network does not treat as constants, and which of them must be equal. Each is then
tried at a second size: first in the network, which may accept no other (a table of positions has an end), then in the
exported file.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from ..running.calling import samples_in
from .capture import Place, captured
from .compare import Arguments, first_line, outputs, tensors_in

logger = logging.getLogger("rankwise")

# Further axes to open: "auto", "none", or axes by input name.
DynamicAxes = str | Mapping[str, Collection[int]]
# A second picture size is divisible by the same powers of two as the first, up to this: networks have strides.
LARGEST_STRIDE = 32


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A program, whether further axes than the batch are open, and arguments at all sizes at which its file is checked.

    `checks` are pairs of a description and arguments, the example first.
    """

    program: torch.export.ExportedProgram
    checks: tuple[tuple[str, Arguments], ...]
    further: bool


def capture(
    model: nn.Module, given: Arguments, dynamic_batch: bool, dynamic_axes: DynamicAxes | None = None
) -> Capture:
    """Capture a network with axes of its inputs open.

    Args:
        model: the network, in eval mode.
        given: the example as arguments of its forward.
        dynamic_batch: whether the first dimension of the inputs is open.
        dynamic_axes: further axes: "auto" for all that the network takes at a second size (logged), "none", or axes by
            input name. None means "auto" if the batch is open, else "none".

    Raises:
        ValueError: if the network cannot be captured, an input or axis does not exist, or a named axis cannot be open.
    """
    if dynamic_axes is None:
        dynamic_axes = "auto" if dynamic_batch else "none"
    inputs = _Inputs(model, given, dynamic_batch)
    if dynamic_axes != "auto":
        asked = inputs.asked(dynamic_axes)
        made, refused = inputs.tried(captured(model, given, dynamic_batch, asked, Dim.DYNAMIC))
        for what, reason in refused.items():
            raise ValueError(f"{what} cannot be open: {reason}; leave it out of dynamic_axes")
        return made
    axes = inputs.further()
    try:
        made, refused = inputs.tried(captured(model, given, dynamic_batch, axes, Dim.AUTO))
        reasons = dict(refused)
        while refused:
            axes = [place for place in axes if inputs.name(place) not in reasons]
            made, refused = inputs.tried(captured(model, given, dynamic_batch, axes, Dim.AUTO))
            reasons |= refused
    except ValueError as error:
        logger.info("no axis except the batch is open: %s", first_line(error))
        return capture(model, given, dynamic_batch, "none")
    opened = inputs.symbols(made.program)
    for place in inputs.further():
        if place not in opened:
            reasons.setdefault(inputs.name(place), f"the network treats {inputs.length(place)} as a constant")
    for what in [inputs.name(place) for place in inputs.further() if place in opened]:
        logger.info("%s is open", what)
    for what, reason in reasons.items():
        logger.info("%s stays closed: %s", what, reason)
    return made


class _Inputs:
    """The tensors that a network is called with, and their axes."""

    def __init__(self, model: nn.Module, given: Arguments, dynamic_batch: bool) -> None:
        self.model, self.given = model, given
        self.tensors = tensors_in(given)
        self.names = _names(model, given)
        self.size = samples_in(pytree.tree_leaves(given))
        self.batched = [dynamic_batch and t.dim() > 0 and len(t) == self.size for t in self.tensors]

    def name(self, place: Place) -> str:
        return f"axis {place[1]} of {self.names[place[0]]}"

    def length(self, place: Place) -> int:
        return self.tensors[place[0]].shape[place[1]]

    def further(self) -> list[Place]:
        """All axes except the batch and axes of length 1, which broadcasting treats differently."""
        places = [(index, axis) for index, tensor in enumerate(self.tensors) for axis in range(tensor.dim())]
        return [place for place in places if self.length(place) > 1 and not (place[1] == 0 and self.batched[place[0]])]

    def asked(self, axes: DynamicAxes) -> list[Place]:
        """Places of the axes that are given by input name."""
        if isinstance(axes, str):
            if axes != "none":
                raise ValueError(f'dynamic_axes is {axes!r}; give "auto", "none", or axes such as {{"x": [1]}}')
            return []
        found: list[Place] = []
        for name, numbers in axes.items():
            if name not in self.names:
                raise ValueError(f"dynamic_axes: there is no input {name!r}; the inputs are {', '.join(self.names)}")
            index = self.names.index(name)
            for axis in numbers:
                if not 0 <= axis < self.tensors[index].dim():
                    shape = tuple(self.tensors[index].shape)
                    raise ValueError(f"dynamic_axes: {name} has shape {shape} and no axis {axis}")
                if self.length((index, axis)) == 1:
                    raise ValueError(f"dynamic_axes: axis {axis} of {name} is 1 in the example; give a longer example")
                found.append((index, axis))
        return [place for place in found if not (place[1] == 0 and self.batched[place[0]])]

    def symbols(self, program: torch.export.ExportedProgram) -> dict[Place, Any]:
        """Open axes of a program, and the symbols of their lengths; lengths that must be equal share a symbol."""
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        found = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
        tensors = [value for value in found if isinstance(value, Tensor)]
        return {
            (index, axis): length.node.expr  # type: ignore[attr-defined]
            for index, tensor in enumerate(tensors)
            for axis, length in enumerate(tensor.shape)
            if isinstance(length, torch.SymInt)
        }

    def tried(self, program: torch.export.ExportedProgram) -> tuple[Capture, dict[str, str]]:
        """A program with arguments at second sizes; for open axes without a second size, the reason by axis name."""
        symbols, checks = self.symbols(program), [(f"batch size {self.size}", self.given)]
        batch = {symbols[index, 0] for index, batched in enumerate(self.batched) if batched and (index, 0) in symbols}
        refused: dict[str, str] = {}
        for symbol in dict.fromkeys(symbols.values()):
            places = [place for place, other in symbols.items() if other == symbol]
            if symbol in batch:
                checks.append((f"batch size {self.size + 2}", self.at(places, self.size + 2)))
                continue
            bounds = program.range_constraints.get(symbol)
            sizes = [n for n in _others(self.length(places[0])) if bounds is None or bounds.lower <= n <= bounds.upper]
            reason = "the program accepts no other size"
            for size in sizes:
                what = " and ".join(f"{self.name(place)} = {size}" for place in places)
                try:
                    outputs(self.model, self.at(places, size), what)
                except ValueError as error:
                    reason = first_line(error.__cause__ or error)
                    continue
                checks.append((what, self.at(places, size)))
                break
            else:
                refused |= {self.name(place): reason for place in places}
        further = bool(set(symbols.values()) - batch)
        return Capture(program=program, checks=tuple(checks), further=further), refused

    def at(self, places: Iterable[Place], size: int) -> Arguments:
        """The example with `size` entries along some axes: entries are repeated or left out."""
        numbers: Iterator[int] = iter(range(len(self.tensors)))
        axes: dict[int, list[int]] = {}
        for index, axis in places:
            axes.setdefault(index, []).append(axis)

        def change(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            for axis in axes.get(next(numbers), ()):
                leaf = leaf.index_select(axis, (torch.arange(size) % leaf.shape[axis]).to(leaf.device))
            return leaf

        made: Arguments = pytree.tree_map(change, self.given)
        return made


def _others(size: int) -> list[int]:
    """Other lengths to try: a longer one, then shorter ones for networks with a largest length."""
    step = min(size & -size, LARGEST_STRIDE)  # the largest power of two that divides it
    return [other for other in (size + step, size - step, size // 2) if other > 1 and other != size]


def _names(model: nn.Module, given: Arguments) -> list[str]:
    """A name for every tensor: its parameter of `forward`, with a number if that holds several tensors."""
    args, kwargs = given
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    names = []
    for name, value in bound.items():
        parts = tensors_in(value)
        names += [name] if len(parts) == 1 else [f"{name}.{number}" for number in range(len(parts))]
    return names

"""Follow the outputs of sites through a forward pass, up to the additions that they go into.

One whole pass of the dense network finds the sites that link (`linked_sites`), for both engines. In networks without a
graph, a pass that ends at the addition then finds the other summand (`Watcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..running.calling import call, tensor_leaves
from ..running.exclusive import own_thread
from ..running.state import writes
from .residual import ADD_NAMES, Link, passes, scale_of, times


def linked_sites(model: nn.Module, sample: Any, sites: Sequence[str]) -> set[str]:
    """The sites whose output is used once, in an addition whose other summand is known before the site is fitted.

    It is known if it depends on neither this site nor a later one, and is not changed in place in between.

    Args:
        model: in eval mode, under no_grad.
        sites: qualified names in the order of execution, each of them called once.
    """
    with _WholePass(model, sites) as watcher:
        output = call(model, sample)
    for trail in watcher.trails.values():
        if trail.uses(output):  # a site's output that the network returns is used a second time
            trail.end()
    return {site for site, trail in watcher.trails.items() if trail.link is not None}


class _Trail:
    """One site's output on its way: from the layer, through norms and the like, to the addition."""

    def __init__(self, site: str, layer: nn.Module) -> None:
        self.site, self.layer = site, layer
        # All are kept: a second use of any of them, also of one before a norm, ends the trail.
        self.tensors: list[Tensor] = []
        self.scale: Tensor | None = None
        self.link: Link | None = None

    def uses(self, values: Any) -> bool:
        """Whether one of its tensors is among some values."""
        if not self.tensors:
            return False
        return any(value is tensor for value in pytree.tree_leaves(values) for tensor in self.tensors)

    def other(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The other summand, where a function adds one to the last tensor."""
        if self.link is not None or getattr(function, "__name__", "") not in ADD_NAMES or len(args) != 2 or kwargs:
            return None  # keywords mean alpha=, which would scale the summand
        others = [value for value in args if value is not self.tensors[-1]]
        return others[0] if len(others) == 1 and isinstance(others[0], Tensor) and not self.uses(others) else None

    def end(self) -> None:
        """Give up: the output has another use."""
        self.tensors, self.link = [], None


class Watcher(TorchFunctionMode):
    """Context that watches a forward pass until a site's output meets its addition, or has another use.

    `trails[site].link` is the result.

    Args:
        model: the network; its modules are hooked inside.
        watched: qualified names of the sites to follow.
        sites: names of all sites. A module without a site is closed: only its input and output count, as in the graph.
        stop: called where a trail ends; it may end the forward pass.
    """

    def __init__(
        self, model: nn.Module, watched: Iterable[str], sites: Iterable[str], stop: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.model, self.sites, self.stop = model, list(sites), stop
        self.trails = {site: _Trail(site, model.get_submodule(site)) for site in watched}
        self.inside = 0  # depth in closed modules
        self.version = 0  # writes of the tensor that the outermost of them was called with

    def __enter__(self) -> Any:
        modules = [(name, module) for name, module in self.model.named_modules() if name]
        closed = [module for name, module in modules if not any(site.startswith(f"{name}.") for site in self.sites)]
        entered, left = own_thread(self._entered), own_thread(self._left)
        self.handles = [module.register_forward_pre_hook(entered, with_kwargs=True) for module in closed]
        self.handles += [module.register_forward_hook(left) for module in closed]
        for site in self.trails:
            self.handles.append(self.model.get_submodule(site).register_forward_hook(own_thread(self._follower(site))))
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for handle in self.handles:
            handle.remove()

    def follow(self, site: str, output: Tensor) -> None:
        """Start at a site's output."""
        self.trails[site].tensors = [output]

    def allows(self, trail: _Trail, other: Tensor) -> bool:
        """Whether a summand makes a link."""
        return True

    def _follower(self, site: str) -> Callable[..., None]:
        return lambda module, args, output: self.follow(site, output)

    def _using(self, values: Any) -> list[_Trail]:
        return [trail for trail in self.trails.values() if trail.uses(values)]

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.inside:
            for trail in self._using((args, kwargs)):
                # Only a module of one argument can be a norm or the like. After the addition every use is a second one.
                straight = len(args) == 1 and args[0] is trail.tensors[-1] and not kwargs
                if trail.link is not None or not straight:
                    trail.end()
                    self.stop()
        self.inside += 1
        if self.inside == 1 and args and isinstance(args[0], Tensor):
            self.version = writes(args[0])

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # `inside` still counts this module, so the operators that compare its output below do not end a trail.
        if self.inside == 1:
            for trail in self._using(args):
                # A module that changed its input in place cannot be compared with it any more.
                if writes(args[0]) == self.version and passes(module, trail.layer, args[0], output):
                    trail.tensors.append(output)
                    trail.scale = times(trail.scale, scale_of(module, trail.layer))
                else:
                    trail.end()
                    self.stop()
        self.inside -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        using = [] if self.inside else self._using((args, kwargs))
        linking = []
        for trail in using:
            other = trail.other(func, args, kwargs)
            if other is not None and self.allows(trail, other):
                trail.link = Link(other.clone(), trail.scale)  # a copy: the addition may be in place
                linking.append(trail)
                self.stop()
        result = func(*args, **kwargs)
        made = tensor_leaves(result)
        for trail in using:
            if trail in linking:  # after an addition in place that tensor is the sum, whose uses do not matter
                trail.tensors = [tensor for tensor in trail.tensors if all(tensor is not sum for sum in made)]
            else:
                trail.end()
                self.stop()
        return result


class _WholePass(Watcher):
    """Follows all sites, and records which of them each tensor depends on and when it was changed in place."""

    def __init__(self, model: nn.Module, sites: Sequence[str]) -> None:
        super().__init__(model, sites, sites)
        self.time = 0  # functions called so far
        self.reached: dict[str, int] = {}
        # Tensors are held, so that no later one gets the identity or the memory of an earlier one.
        self.sources: dict[int, tuple[Tensor, frozenset[str]]] = {}
        self.changed: dict[int, tuple[Tensor, int]] = {}
        # Sources of values that became Python numbers: from then on every tensor may depend on them.
        self.measured: frozenset[str] = frozenset()

    def follow(self, site: str, output: Tensor) -> None:
        super().follow(site, output)
        self.reached[site] = self.time
        self.sources[id(output)] = (output, self._sources([output]) | {site})

    def allows(self, trail: _Trail, other: Tensor) -> bool:
        # The summand is computed before the site is fitted: it must not depend on this site or a later one, nor change
        # after the site has run.
        later = self.sites[self.sites.index(trail.site) :]
        _, changed = self.changed.get(other.untyped_storage().data_ptr(), (other, -1))
        sources = self._sources([other]) | self.measured
        return changed <= self.reached[trail.site] and sources.isdisjoint(later)

    def _sources(self, tensors: list[Tensor]) -> frozenset[str]:
        nothing: frozenset[str] = frozenset()
        return nothing.union(*(self.sources[id(tensor)][1] for tensor in tensors if id(tensor) in self.sources))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = tensor_leaves((args, kwargs))
        versions = [writes(tensor) for tensor in given]
        result = super().__torch_function__(func, types, args, kwargs)
        self.time += 1
        changed = [tensor for tensor, before in zip(given, versions, strict=True) if writes(tensor) != before]
        for tensor in changed:
            self.changed[tensor.untyped_storage().data_ptr()] = (tensor, self.time)
        if sources := self._sources(given):
            made = tensor_leaves(result)
            for tensor in [*made, *changed]:
                self.sources[id(tensor)] = (tensor, sources | self._sources([tensor]))
            if not made and not self.inside:  # such as item() or a shape
                self.measured |= sources
        return result

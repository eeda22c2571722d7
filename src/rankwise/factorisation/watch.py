"""Follow the outputs of sites through a forward pass, up to the additions that they go into.

A whole pass of the dense network says which sites link (`linked_sites`), whichever engine runs the networks afterwards;
for networks without a graph, a pass that ends at the addition finds the other summand (`Watcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..running.calling import call
from ..running.exclusive import own_thread
from ..running.state import writes
from .residual import ADD_NAMES, Link, passes, scale_of, times


def linked_sites(model: nn.Module, sample: Any, sites: Sequence[str]) -> set[str]:
    """The sites whose output is used once, for an addition whose other summand can be had before the site is fitted.

    It can where it depends on no site that runs as late as this one, and is not changed between site and addition.

    Args:
        model: in eval mode, under no_grad.
        sample: what the model is called with.
        sites: qualified names in the order of execution, each of them called once.
    """
    with _WholePass(model, sites) as watcher:
        output = call(model, sample)
    for trail in watcher.trails.values():
        if trail.uses(output):  # it leaves the network as well
            trail.end()
    return {site for site, trail in watcher.trails.items() if trail.link is not None}


class _Trail:
    """One site's output: itself, then what passed through norms and the like, up to the addition."""

    def __init__(self, site: str, layer: nn.Module) -> None:
        self.site, self.layer = site, layer
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
            return None
        others = [value for value in args if value is not self.tensors[-1]]
        return others[0] if len(others) == 1 and isinstance(others[0], Tensor) and not self.uses(others) else None

    def end(self) -> None:
        """The output is used otherwise."""
        self.tensors, self.link = [], None


class Watcher(TorchFunctionMode):
    """Watches a forward pass until a site's output meets its addition, or is used otherwise.

    Entered around the call; `trails[site].link` is the result.

    Args:
        model: the network; its modules are hooked inside.
        watched: qualified names of the sites to follow.
        sites: names of all sites; as in the graph, a module that holds none of them is not looked into.
        stop: called where a trail ends; it may end the forward pass.
    """

    def __init__(
        self, model: nn.Module, watched: Iterable[str], sites: Iterable[str], stop: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.model, self.sites, self.stop = model, list(sites), stop
        self.trails = {site: _Trail(site, model.get_submodule(site)) for site in watched}
        self.inside = 0  # depth in modules that are not looked into
        self.version = 0  # of the tensor that the outermost of them was called with

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
                straight = len(args) == 1 and args[0] is trail.tensors[-1] and not kwargs
                if trail.link is not None or not straight:
                    trail.end()
                    self.stop()
        self.inside += 1
        if self.inside == 1 and args and isinstance(args[0], Tensor):
            self.version = writes(args[0])

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.inside == 1:  # still inside: what is computed here is no use of the outputs
            for trail in self._using(args):
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
                trail.link = Link(other.clone(), trail.scale)
                linking.append(trail)
                self.stop()
        result = func(*args, **kwargs)
        made = _tensors(result)
        for trail in using:
            if trail in linking:  # added to in place, it has become the sum
                trail.tensors = [tensor for tensor in trail.tensors if all(tensor is not sum for sum in made)]
            else:
                trail.end()
                self.stop()
        return result


class _WholePass(Watcher):
    """Follows all sites, and keeps account of what depends on which of them and of what is changed in place when."""

    def __init__(self, model: nn.Module, sites: Sequence[str]) -> None:
        super().__init__(model, sites, sites)
        self.time = 0
        self.reached: dict[str, int] = {}
        # Tensors are held, so that none takes the identity or the memory of another.
        self.sources: dict[int, tuple[Tensor, frozenset[str]]] = {}
        self.changed: dict[int, tuple[Tensor, int]] = {}
        self.measured: frozenset[str] = frozenset()  # what the sizes and the like that were read depend on

    def follow(self, site: str, output: Tensor) -> None:
        super().follow(site, output)
        self.reached[site] = self.time
        self.sources[id(output)] = (output, self._sources([output]) | {site})

    def allows(self, trail: _Trail, other: Tensor) -> bool:
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
        given = _tensors((args, kwargs))
        versions = [writes(tensor) for tensor in given]
        result = super().__torch_function__(func, types, args, kwargs)
        self.time += 1
        changed = [tensor for tensor, before in zip(given, versions, strict=True) if writes(tensor) != before]
        for tensor in changed:
            self.changed[tensor.untyped_storage().data_ptr()] = (tensor, self.time)
        if sources := self._sources(given):
            made = _tensors(result)
            for tensor in [*made, *changed]:
                self.sources[id(tensor)] = (tensor, sources | self._sources([tensor]))
            if not made and not self.inside:
                self.measured |= sources
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]

"""Run the two networks from the start for every site and stop at it: for networks whose graph cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..batches import Batches, call
from .graph import Visitor
from .residual import Link, Watcher, repair


class _Reached(BaseException):
    """Ends a forward pass at the site."""


def run(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Batches,
    sites: Iterable[str],
    visitor: Visitor,
    step: Callable[[str], None] = lambda site: None,
) -> None:
    """Visit the sites in the given order; the arguments are those of `graph.run`.

    The cost grows with the square of the number of sites.
    """
    order = list(sites)
    for number, site in enumerate(order):
        step(site)
        for index, batch in enumerate(batches):
            y, dense_link = _output(dense, order, number, batch, index)
            x, needed = _input(compressed, site, batch, index), None
            if dense_link is not None:
                _, link = _output(compressed, order, number, batch, index)
                if link is not None:
                    needed = repair(y, dense_link.other, link.other, dense_link.scale)
            visitor.observe(site, index, x, y, needed)
        visitor.finish(site)


def _output(model: nn.Module, sites: list[str], number: int, batch: Any, index: int) -> tuple[Tensor, Link | None]:
    """One site's output, and the other summand where it goes into an addition before a later site is run."""
    site, later = sites[number], sites[number + 1 :]
    caught: list[Tensor] = []

    def stop(*_: Any) -> None:
        raise _Reached

    watcher = Watcher(model, site, sites, stop)

    def reached(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught.append(output.clone())  # it may be changed in place before the addition
        watcher.follow(output)

    handles = [model.get_submodule(site).register_forward_hook(reached)]
    handles += [model.get_submodule(name).register_forward_pre_hook(stop) for name in later]
    try:
        with watcher:
            call(model, batch, index=index)
    except _Reached:
        pass
    finally:
        watcher.remove()
        for handle in handles:
            handle.remove()
    if not caught:
        raise ValueError(f"batch {index} never reached site {site!r}; ignore the site, or remove the batch")
    return caught[0], watcher.link


def _input(model: nn.Module, site: str, batch: Any, index: int) -> Tensor:
    """The site's input."""
    caught: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else next(iter(kwargs.values())))
        raise _Reached

    handle = model.get_submodule(site).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call(model, batch, index=index)
    except _Reached:
        return caught[0]
    finally:
        handle.remove()
    raise ValueError(f"batch {index} never reached site {site!r}; ignore the site, or remove the batch")

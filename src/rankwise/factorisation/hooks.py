"""Run both networks from the start for every site and stop at it: for networks whose graph cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..running.attributes import Attributes
from ..running.batches import Batches
from ..running.calling import call
from ..running.exclusive import own_thread
from ..running.padding import Padding
from ..running.randomness import Randomness
from .graph import Visitor
from .residual import Link, repair
from .watch import Watcher


class Pass(NamedTuple):
    """One batch, as both networks run it.

    Attributes:
        dense, compressed: run the networks, or the parts of them that hold the sites.
        real: which rows of a site's input are not padding, see `Padding`.
    """

    dense: Callable[[], Any]
    compressed: Callable[[], Any]
    real: Callable[[str, Tensor], Tensor | None]


class Whole:
    """Passes in which the networks run from the start."""

    def __init__(self, dense: nn.Module, compressed: nn.Module, batches: Batches, padding: Padding) -> None:
        self.dense, self.compressed, self.batches, self.padding = dense, compressed, batches, padding

    def __iter__(self) -> Iterator[Pass]:
        for index, batch in enumerate(self.batches):
            dense, compressed = (partial(call, model, batch, index=index) for model in (self.dense, self.compressed))
            yield Pass(dense, compressed, self.padding.real(batch))


class _Reached(BaseException):
    """Ends a forward pass at the site."""


def run(
    dense: nn.Module,
    compressed: nn.Module,
    passes: Iterable[Pass],
    sites: Iterable[str],
    linked: set[str],
    visitor: Visitor,
    seed: int = 0,
    step: Callable[[str], None] = lambda site: None,
) -> None:
    """Visit the sites in the given order; arguments as for `graph.run`.

    Every site needs up to three passes, so with `Whole` the cost grows with the square of the number of sites. Both
    networks draw the same random numbers for a batch, from `seed` plus its number.

    Args:
        passes: one for each batch, the same ones every time they are asked for.
    """
    order, randomness = list(sites), Randomness(dense, compressed)
    for site in order:
        step(site)
        state = Attributes(dense), Attributes(compressed)
        for index, each in enumerate([] if visitor.is_done(site) else passes):
            randomness.seed(seed + index)
            y, dense_link = _output(dense, site, order, site in linked, each.dense)
            randomness.seed(seed + index)
            x, needed = _input(compressed, site, each.compressed), None
            if dense_link is not None and y is not None:
                randomness.seed(seed + index)
                # A third pass, which must not count as another batch of a network that keeps state between calls.
                once = Attributes(compressed)
                _, link = _output(compressed, site, order, True, each.compressed)
                once.restore()
                if link is not None:
                    needed = repair(dense.get_submodule(site), y, dense_link.other, link.other, dense_link.scale)
            visitor.observe(site, index, x, y, needed, None if x is None else each.real(site, x))
        for before in state:  # the next site sees the data from the start
            before.restore()
        visitor.finish(site)


def _output(
    model: nn.Module, site: str, sites: list[str], linked: bool, running: Callable[[], Any]
) -> tuple[Tensor | None, Link | None]:
    """One site's output, None where the batch never reaches it, and the other summand of its addition."""
    caught: list[Tensor] = []

    def stop() -> None:
        raise _Reached

    def reached(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught.append(output.clone())  # the network may change it in place before the addition
        if not linked:
            stop()

    # Before all other hooks: it sees the layer's own output.
    hooked = model.get_submodule(site).register_forward_hook(own_thread(reached), prepend=True)
    watcher = Watcher(model, [site] if linked else [], sites, stop)
    with suppress(_Reached), hooked, watcher:
        running()
    if not caught:
        return None, None
    return caught[0], watcher.trails[site].link if linked else None


def _input(model: nn.Module, site: str, running: Callable[[], Any]) -> Tensor | None:
    """The site's input, None where the batch never reaches it."""
    caught: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else next(iter(kwargs.values())))
        raise _Reached

    hooked = model.get_submodule(site).register_forward_pre_hook(own_thread(stop), with_kwargs=True)
    with suppress(_Reached), hooked:
        running()
    return caught[0] if caught else None

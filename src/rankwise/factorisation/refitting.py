"""The last least squares of factorised layers once more, on more data than their moments were collected from.

The last layer of a chain that a least squares fit gave (the layer that reads hidden units, the second factor of an
svd) needs only what it reads itself, so a pass of the dense network over more data is cheap, and no plan changes.

Letters: N rows, R inputs of the last layer of a chain, T outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.building import set_bias
from ..formats.weights import read, write
from ..layers.kinds import Role, is_convolution, site_kind
from ..layers.low_rank import LowRank
from ..layers.modules import Kept
from ..network.replacing import module_at
from ..running.batches import Batches
from ..running.calling import DataError, call
from ..running.copying import copied
from ..running.exclusive import own_thread
from ..running.guards import unwrap
from ..running.padding import Mask, Padding
from ..running.pristine import pristine
from ..running.verbs import verb
from ..statistics.accumulator import Accumulator
from ..statistics.rows import draw
from .fitting import regression_bias, regression_target

logger = logging.getLogger("rankwise")

# Fewer rows than this for each input of a layer, and fits are noticeably worse on other data (docs/transformers.md).
ENOUGH_ROWS_PER_INPUT = 20


@verb
@torch.no_grad()
def refit(
    small: nn.Module,
    dense: nn.Module,
    data: Iterable[Any],
    *,
    mask: Mask | None = None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> nn.Module:
    """Fit the last layer of every chain to the dense network's outputs, on more data.

    `min over U, c of E ||y - U z - c||^2 + e ||U - U_0||^2` with `z` what the chain's last layer `U_0` reads when the
    chain gets the inputs of the dense layer, `y` the dense layer's output, and a small `e`. Which units are kept, and
    all other factors, stay as they are. It is for networks that were factorised in one shot: a sequential fit has other
    inputs.

    Args:
        small: the factorised network; it is not changed.
        dense: the network it was made from; it is not changed.
        data: unlabelled batches, those of the statistics among them. Twenty rows for each input of the widest layer
            are a good start; fewer are announced.
        mask: the padding to leave out, as for `collect`.
        progress: wraps the batches, for a progress bar.

    Returns:
        A copy of `small` with other numbers in the last layers of its linear chains; convolutions, and layers that
        share factors, keep theirs.

    Raises:
        ValueError: if no chain of `small` ends in a linear layer, the data is empty or not finite, or the networks do
            not belong together.

    Example:
        >>> import rankwise as rw
        >>> dense = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> few, more = [torch.randn(40, 16)], [torch.randn(400, 16)]
        >>> stats = rw.collect(dense, few)
        >>> small = rw.factorise(dense, rw.choose(dense, stats, keep={"params": 0.5}), stats)
        >>> better = refit(small, dense, few + more)

    Source: least squares on the inputs that are left, as in He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep
    Neural Networks", 2017, arXiv 1707.06168.
    """
    small, dense = copied(unwrap(small)), unwrap(dense)
    chains = last_layers(small, dense)
    if not chains:
        raise ValueError(
            f"no chain of this {type(small).__name__} ends in a linear layer of its own, so there is nothing to refit"
        )
    batches, padding = Batches.of(data), Padding(mask)
    sums = {name: Accumulator(crosses=True) for name in chains}
    with pristine(dense), pristine(small), ExitStack() as hooks:
        collector = _Collector(chains, sums)
        for name in chains:
            hook = own_thread(collector.observer(name))
            hooks.callback(dense.get_submodule(name).register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
        for index, batch in enumerate(batches if progress is None else progress(batches, "refit")):
            collector.batch, collector.real = index, padding.real(batch)
            call(dense, batch, index=index)
        rows = {
            name: (sums[name].count, read(dense.get_submodule(name)).shape[1]) for name in chains if sums[name].count
        }
        for name, chain in chains.items():
            if sums[name].count:  # the data may never reach a layer, which then stays as it is
                _solve(chain, sums.pop(name))
    tell_rows(rows.values(), "the last layers were refitted on")
    return small


def tell_rows(rows: Iterable[tuple[int, int]], what: str) -> None:
    """Log how many rows there were for each input of the layer that has the fewest; a warning where they are few.

    Args:
        rows: rows and inputs of each layer.
        what: was done with them, in words.
    """
    found = list(rows)
    if not found:
        return
    count, inputs = min(found, key=lambda each: each[0] / each[1])
    few = count < ENOUGH_ROWS_PER_INPUT * inputs
    advice = f"; {ENOUGH_ROWS_PER_INPUT} are a good start, give more data" if few else ""
    logger.log(
        logging.WARNING if few else logging.INFO,
        "%s %d rows, %.1f for each of the %d inputs of the widest layer%s",
        what,
        count,
        count / inputs,
        inputs,
        advice,
    )


def last_layers(small: nn.Module, dense: nn.Module) -> dict[str, LowRank]:
    """The chains whose last layer is linear and theirs alone, by name: those that `refit` changes.

    Raises:
        ValueError: if a layer that was factorised is not a dense one in `dense`.
    """
    found: dict[str, LowRank] = {}
    for name, chain in small.named_modules():
        if not isinstance(chain, LowRank) or chain.role not in (Role.LAYER, Role.HIDDEN):
            continue
        layer = module_at(dense, name)
        if site_kind(layer) is None or isinstance(layer, LowRank):
            raise ValueError(f"{name!r} is not a dense layer in the dense network; pass the network {name!r} was in")
        if type(chain[-1]) is nn.Linear and not is_convolution(chain.kind):
            found[name] = chain
    return found


class _Collector:
    """Passes what the last layers read, and the dense outputs, to accumulators."""

    def __init__(self, chains: dict[str, LowRank], sums: dict[str, Accumulator]) -> None:
        self.chains, self.sums = chains, sums
        self.batch = 0
        self.real: Callable[[str, Tensor], Tensor | None] = lambda site, x: None

    def observer(self, name: str) -> Callable[..., None]:
        """A forward hook for the dense layer that a chain replaced."""

        def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if not x.numel():  # an empty call adds nothing
                return
            real = self.real(name, x)
            z = x
            for part in list(self.chains[name])[:-1]:
                z = part.taken(z) if isinstance(part, Kept) else part(z)
            drawn = draw(layer, z, y, None, name, 0, real)
            try:
                self.sums[name].update(drawn.of_inputs(layer, z), drawn.of_outputs(layer, y))
            except ValueError as error:
                raise DataError(f"site {name!r}, batch {self.batch}: {error}") from error

        return observe


def _solve(chain: LowRank, sums: Accumulator) -> None:
    last: Any = chain[-1]
    moments = sums.moments().without_rows()
    if last.bias is None:  # without one the mean must be fitted by the weight
        moments = moments.uncentred()
    U_1TR = regression_target(read(last).double()[None], moments)
    write(last, U_1TR[0])
    if last.bias is not None:
        set_bias(last, regression_bias(U_1TR, moments)[0])

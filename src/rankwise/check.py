"""Check a factorised network against its plan: run it once and see that it computes, and costs, what the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .batches import call, pristine
from .counting import Recorder
from .formats.low_rank import LowRank, watching_weights
from .sites import Site
from .standins import Reads, works_on_another


def check_result(
    dense: nn.Module, result: nn.Module, sites: Iterable[Site], example: Any, macs: int | None = None
) -> None:
    """Run a factorised network once and refuse it where it is not what its plan says.

    Every chain is called as often as the layer that it replaced, no weight of a chain is put together, nothing of the
    dense network is read, and outputs are finite where those of the dense network are. Multiply-accumulates are counted
    by operators, so that none is missed that runs beside the layers.

    Args:
        dense: the network that was factorised.
        result: the factorised network.
        sites: those that were factorised.
        example: what the networks are called with.
        macs: what the result counts to by its plan, for this example; None where that is not known.

    Raises:
        ValueError: naming the site, what is wrong and what to do.
    """
    chains = {site.name: result.get_submodule(site.name) for site in sites}
    names = {chain: name for name, chain in chains.items()}
    wanted = _calls(dense, {site.name: (site.name, *site.aliases) for site in sites}, example)
    made: set[str] = set()
    infinite: list[str] = []

    def watch(chain: LowRank) -> None:
        made.add(names.get(chain, chain.format))

    def finite(chain: nn.Module, args: Any, output: Any) -> None:
        if not _finite(output):
            infinite.append(names[chain])

    originals = {id(tensor): name for name, tensor in (*dense.named_parameters(), *dense.named_buffers())}
    with ExitStack() as stack:
        stack.enter_context(pristine(result))
        calls = _counting(stack, result, {site.name: (site.name, *site.aliases) for site in sites})
        for chain in names:
            stack.callback(chain.register_forward_hook(finite, prepend=True).remove)
        stack.enter_context(watching_weights(watch))
        record = stack.enter_context(Recorder(result, by_operators=True))
        reads = stack.enter_context(Reads(originals))
        output = call(result, example)
    if reads.found:
        raise ValueError(f"the factorised {type(dense).__name__} {works_on_another(dense, reads.found)}")
    for name in chains:
        if name in made:
            raise _wrong(name, "its dense weight is put together again in every forward")
        if calls[name] != wanted[name]:
            raise _wrong(name, f"the network calls it {calls[name]} times instead of {wanted[name]}")
    if infinite and _finite(_output(dense, example)):
        raise _wrong(infinite[0], "its outputs are not finite where those of the dense network are")
    if not _finite(output) and _finite(_output(dense, example)):
        raise ValueError("outputs of the factorised network are not finite where those of the dense network are")
    if macs is not None and record.total_macs != macs:
        raise ValueError(
            f"the factorised network runs {record.total_macs:,} multiply-accumulates, its plan says {macs:,}: the "
            f"forward of {type(dense).__name__} does something else with the factorised layers; "
            f"leave some dense with ignore=, first {next(iter(chains))!r}"
        )


def _wrong(name: str, what: str) -> ValueError:
    return ValueError(f"site {name!r} cannot be factorised: {what}; leave it dense with ignore=[{name!r}]")


def _calls(model: nn.Module, paths: dict[str, Sequence[str]], example: Any) -> Counter[str]:
    """How often the layers of each site are called."""
    with ExitStack() as stack:
        stack.enter_context(pristine(model))
        calls = _counting(stack, model, paths)
        call(model, example)
    return calls


def _counting(stack: ExitStack, model: nn.Module, paths: dict[str, Sequence[str]]) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name, its_paths in paths.items():
        for layer in {model.get_submodule(path): None for path in its_paths}:

            def count(*_: Any, name: str = name) -> None:
                calls[name] += 1

            stack.callback(layer.register_forward_pre_hook(count).remove)
    return calls


def _output(model: nn.Module, example: Any) -> Any:
    with pristine(model):
        return call(model, example)


def _finite(output: Any) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves if leaf.is_floating_point())

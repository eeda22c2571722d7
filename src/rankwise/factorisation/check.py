"""Check a factorised network against its plan: run it once, and compare calls, values and MACs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..formats import get_format
from ..layers.kinds import FED
from ..layers.low_rank import LowRank, watching_weights
from ..network.counting import Calls, Recorder
from ..network.find import find
from ..network.site import Site
from ..network.sites import Sites
from ..network.standins import Reads, works_on_another
from ..running.calling import call, tensor_leaves
from ..running.exclusive import own_thread
from ..running.pristine import pristine
from ..surgery.unfusing import reunfused, unfused_in


def check_result(
    dense: nn.Module,
    result: nn.Module,
    sites: Sites,
    planned: Mapping[str, int],
    example: Any,
    alike: bool = True,
) -> None:
    """Run a factorised network once and raise where it does not follow its plan.

    Every chain is called as often as the layer that it replaced, its dense weight is never rebuilt, no tensor of the
    dense network is read, and outputs are finite where those of the dense network are. MACs are counted by operators,
    so that work outside the layers counts too. Where rows go to layers by their values, as in a mixture of experts,
    each layer's MACs are compared for the rows that it received.

    Args:
        planned: factorised site -> MACs of its chain by the plan.
        alike: whether the sites were counted with the same MACs as this example; only then are MACs compared.

    Raises:
        ValueError: naming the site, what is wrong and what to do.
    """
    chains = {name: result.get_submodule(name) for name in planned}
    names = {chain: name for name, chain in chains.items()}
    wanted = Calls(dense)
    with wanted, pristine(dense):
        call(dense, example)
    made: set[str] = set()
    infinite: list[str] = []

    def watch(chain: LowRank) -> None:
        made.add(names.get(chain, chain.format.name))

    def finite(chain: nn.Module, args: Any, output: Any) -> None:
        if not _finite(output):
            infinite.append(names[chain])

    originals = {id(tensor): name for name, tensor in (*dense.named_parameters(), *dense.named_buffers())}
    with ExitStack() as stack:
        stack.enter_context(pristine(result))
        calls = stack.enter_context(Calls(result))
        for chain in names:
            stack.callback(chain.register_forward_hook(own_thread(finite), prepend=True).remove)
        stack.enter_context(watching_weights(watch))
        record = stack.enter_context(Recorder(result, by_operators=True))
        reads = stack.enter_context(Reads(originals))
        output = call(result, example)
    if reads.found:
        raise ValueError(f"the factorised {type(dense).__name__} {works_on_another(dense, reads.found)}")
    for name in planned:
        if name in made:
            raise _wrong(name, "its dense weight is rebuilt in every forward")
        found, before = (sum(seen.count[path] for path in sites[name].names) for seen in (calls, wanted))
        if found != before:
            raise _wrong(name, f"the network calls it {found} times instead of {before}")
    if infinite or not _finite(output):
        with pristine(dense):
            comparable = _finite(call(dense, example))
        if comparable and infinite:
            raise _wrong(infinite[0], "its outputs are not finite where those of the dense network are")
        if comparable:
            raise ValueError("outputs of the factorised network are not finite where those of the dense network are")
    total = sites.total_macs + sum(macs - sites[name].macs for name, macs in planned.items())
    if alike and record.total_macs != total:
        # Totals may differ for a good reason, such as other rows sent to experts: compare module by module.
        with Recorder(dense, by_operators=True) as own, pristine(dense):
            call(dense, example)
        _compare(own.macs, record.macs, wanted.numbers, calls.numbers, [sites[name] for name in planned], planned)


def check_loaded(dense: nn.Module, result: nn.Module, example: Any) -> None:
    """`check_result` of a loaded network, whose plan is read from its chains; `dense` may have any values."""
    dense = reunfused(dense, unfused_in(result))
    joint = {part.role.value for part in result.modules() if isinstance(part, LowRank) and part.role in FED}
    sites = find(dense, example, joint=joint)
    # Of the layers around hidden units or heads the last has the ranks and the bias of the site.
    parts = {name: result.get_submodule(site.slots[-1][0] if site.feeders else name) for name, site in sites.items()}
    planned = {
        name: get_format(chain.format.name).cost(sites[name], chain.ranks, chain.bias is not None).macs
        for name, chain in parts.items()
        if isinstance(chain, LowRank)
    }
    if planned:
        check_result(dense, result, sites, planned, example)


def _compare(
    before: Counter[str],
    after: Counter[str],
    given_before: Counter[str],
    given_after: Counter[str],
    sites: Sequence[Site],
    planned: Mapping[str, int],
) -> None:
    """Raise where MACs, relative to the numbers that each module received, differ from the plan's.

    Args:
        before, after: MACs by module, in the dense and in the factorised network.
        given_before, given_after: numbers that each module received.
        planned: site -> MACs of its chain.
    """
    inside, fed = {site.name: site.names for site in sites}, {site.name for site in sites if site.feeders}
    for name, paths in inside.items():
        chain = sum(macs for owner, macs in after.items() if any(f"{owner}.".startswith(f"{path}.") for path in paths))
        # Layers around hidden units share them: only the first gets as many numbers as before.
        own = paths[:1] if name in fed else paths
        now, then = (sum(given[path] for path in own) for given in (given_after, given_before))
        if chain * then != planned[name] * now:  # chain / now != planned / then, without division
            macs = planned[name] * now // then if then else 0
            raise _wrong(name, f"its chain runs {chain:,} multiply-accumulates, its plan says {macs:,}")
    chains = tuple(f"{path}." for paths in inside.values() for path in paths)
    for owner in before.keys() | after.keys():
        same = owner not in given_before or given_before[owner] == given_after[owner]
        if not f"{owner}.".startswith(chains) and same and before[owner] != after[owner]:
            raise ValueError(
                f"the factorised network runs {after[owner]:,} multiply-accumulates in {owner!r}, the dense one "
                f"{before[owner]:,}: its forward treats the factorised layers differently; leave some dense with "
                f"ignore=, first {next(iter(inside))!r}"
            )


def _wrong(name: str, what: str) -> ValueError:
    return ValueError(f"site {name!r} cannot be factorised: {what}; leave it dense with ignore=[{name!r}]")


def _finite(output: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in tensor_leaves(output) if leaf.is_floating_point())

"""From ordered layers to plain networks: dense layers again, and any nested network without further training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..factorisation import factorise
from ..network.sites import Sites
from ..plan import Plan
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.verbs import verb
from ..training.expand import merge_
from ..training.trained_sites import plan_at
from .layer import counts, ordered_layers


def settle_(model: nn.Module, sites: Sites, why: str, ranks: Mapping[str, int] | None = None) -> Plan:
    """Make all ordered layers dense again and return the plan of the network that they were.

    Args:
        model: changed in place; afterwards it has its own classes again, with weights of low rank.
        sites: of the network before `order_`.
        why: what chose the ranks, for the plan.
        ranks: components by layer; by default all active ones.

    Returns:
        The plan: a layer whose two factors would cost more than the dense one stays dense.

    Raises:
        ValueError: for a layer that is not ordered, or a rank that it does not have.
    """
    layers, wanted = ordered_layers(model), counts(model) | dict(ranks or {})
    if unknown := sorted(wanted.keys() - layers.keys()):
        raise ValueError(f"{unknown[0]!r} is no ordered layer; these are {', '.join(layers)}")
    if none := [name for name, rank in wanted.items() if rank < 1]:
        raise ValueError(f"layer {none[0]!r} would have no component, only a bias; leave it at least one")
    for name, layer in layers.items():
        layer.keep(wanted[name])
    merge_(model)
    return plan_at(model, sites, wanted, why)


@verb
def extract(model: nn.Module, sites: Sites, ranks: Mapping[str, int] | None = None) -> tuple[nn.Module, Plan]:
    """The nested network that uses the first components of each layer, as plain layers; nothing is trained.

    Args:
        model: with ordered layers; it is not changed.
        sites: of the network before `order_`, from `rankwise.find`.
        ranks: components by layer; layers without one have all that are active.

    Returns:
        A network like those of `rankwise.factorise`, and its plan, which `rankwise.save` keeps with it. Layers that
        would cost more than dense ones are dense.

    Raises:
        ValueError: for a layer that is not ordered, or a rank that it does not have.

    Example:
        >>> import rankwise as rw, torch
        >>> from rankwise.ordered import order_, using
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(4, 16)
        >>> sites = rw.find(model, x)
        >>> small, plan = extract(order_(model, sites), sites, {"0": 3})
        >>> with using(model, {"0": 3}):
        ...     plan["0"].ranks, torch.allclose(small(x), model(x), atol=1e-5)
        ((3,), True)
    """
    dense = copied(unwrap(model))
    plan = settle_(dense, sites, "the first components of an ordered layer", ranks)
    return factorise(dense, plan, sites), plan

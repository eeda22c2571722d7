"""The sites whose weights a technique trains towards low rank: which, their weights as matrices, their plan.

Letters: G groups, T outputs per group, D inputs per group (channels x taps).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..formats import FORMATS, Ranks, get_format
from ..formats.weights import read, write
from ..layers.kinds import FED, Role
from ..network.replacing import module_at
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Plan, dense_option
from ..planning.constraints import Pin
from ..planning.planner import Planner
from ..planning.request import Request
from ..ranks import Pick, Problem, Rule

# Why sites of several slots stay as they are.
SHARED = {
    Role.TIED: "its weight is shared by an embedding and a linear layer",
    **dict.fromkeys(FED, "it is one with the layers that compute its inputs"),
    Role.JOINT: "it is fitted as one with other layers",
}


def trained_sites(model: nn.Module, sites: Sites, only: str | Iterable[str] = "*", doing: str = "train") -> list[Site]:
    """The sites that patterns name and that have one weight to train.

    Args:
        model: their network.
        sites: its sites, from `rankwise.find`.
        only: patterns. Embeddings and heads of language models need a pattern other than "*".
        doing: the verb of the message.

    Raises:
        ValueError: for sites of another network, a pattern that matches nothing, or if no site is left, with the reason
            of the first.
    """
    sites.check_structure(model)
    named = sites.select(only)
    chosen = [site for site in sites.included(only) if site.dense_because is None and site.role not in SHARED]
    if not chosen:
        reason = named[0].dense_because or SHARED.get(named[0].role) or named[0].unless_named
        raise ValueError(f"nothing to {doing}; site {named[0].name!r} must stay as it is: {reason}")
    return chosen


def site_matrix(model: nn.Module, site: Site) -> Tensor:
    """The site's weight as G x T x D; gradients flow through it."""
    weight = read(module_at(model, site.name))
    return weight.reshape(site.groups, len(weight) // site.groups, -1)


@torch.no_grad()
def set_matrix(model: nn.Module, site: Site, W_GTD: Tensor) -> None:
    """Write a weight, G x T x D, into the site's layer."""
    layer = module_at(model, site.name)
    write(layer, W_GTD.to(read(layer)))


def plan_at(model: nn.Module, sites: Sites, ranks: Mapping[str, int | tuple[str, Ranks]], why: str) -> Plan:
    """The plan that factorises sites at given ranks; all other sites, and those that would not save, stay dense.

    Args:
        model: the network with its dense layers.
        ranks: by site name, a rank of the format svd, or (format, ranks).
        why: what chose them, for the plan.

    Raises:
        ValueError: for ranks that a site cannot have.
    """
    pins: dict[str, Pin] = {}
    for name, wanted in ranks.items():
        format, own = ("svd", (wanted,)) if isinstance(wanted, int) else wanted
        saves = get_format(format).saves(sites[name], own)
        pins[name] = (FORMATS.get(format, format), own) if saves else DENSE
    # One option each, so that nothing but the pinned fits is computed.
    curves = {name: (dense_option(site),) for name, site in sites.items()}
    planner = Planner.of(model, sites, metric="weight", curves=curves, pin=pins)
    plan = planner.plan(Request(rule=_Given()))
    # "pinned" would not say by what.
    rows = [replace(row, why=why if row.format != DENSE else _dense_because(row.site, pins)) for row in plan.rows]
    return replace(plan, rows=tuple(rows))


def _dense_because(name: str, pins: Mapping[str, Pin]) -> str:
    return "the trained ranks would cost more than the dense layer" if name in pins else "not trained towards low rank"


@dataclass(frozen=True, kw_only=True)
class _Given(Rule):
    """The only option of every site."""

    name: ClassVar[str] = "trained"
    summary: ClassVar[str] = "ranks that a training found"
    needs_budget: ClassVar[bool] = False

    def choose(self, problem: Problem) -> list[Pick]:
        return [Pick(0, "trained") for _ in problem.sites]

    def __str__(self) -> str:
        return self.name

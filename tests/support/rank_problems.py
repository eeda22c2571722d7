"""Small problems for rules: sites with given spectra, costs linear in the rank, errors as the tails of the spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from rankwise import Plan
from rankwise.plan import Option
from rankwise.ranks import Candidates, Problem, Rule, get_rule
from rankwise.ranks.spectra import Spectra, Unfolding


def brief(name: str) -> Rule:
    """A rule by its name, with fewer trials and steps than by default where it takes many."""
    return get_rule(
        {"bayesian": "bayesian:trials=3", "bolaco": "bolaco:trials=3", "continuous": "continuous:steps=60"}.get(
            name, name
        )
    )


def site(
    name: str, values: list[float], cost: int = 2, dense: int | None = None, importance: float = 1.0
) -> Candidates:
    """A site of one format with a rank for each singular value that costs less than dense."""
    values_K = torch.tensor(values, dtype=torch.float64)
    whole = len(values) * cost if dense is None else dense
    energy, total = values_K.square(), float(values_K.square().sum())
    options = [Option(format="dense", ranks=(), params=whole, macs=10 * whole, error=0.0)]
    for rank in range(1, len(values) + 1):
        if rank * cost < whole:
            error = float(energy[rank:].sum()) / total
            options.append(Option(format="svd", ranks=(rank,), params=rank * cost, macs=rank * cost * 10, error=error))

    def spectra(format: str) -> Spectra:
        if format != "svd":
            raise ValueError(f"site {name!r}: the ranks of {format} cut no singular values")
        return ((Unfolding(values_K=values_K, rows=len(values), columns=2 * len(values)),),)

    return Candidates(
        name=name,
        options=tuple(options),
        costs={"params": [option.params for option in options], "macs": [option.macs for option in options]},
        dense=options[0],
        spectra=spectra,
        importance=lambda: importance,
        slopes=lambda: [(-1) ** place * value for place, value in enumerate(values)],
    )


def problem(*sites: Candidates, evaluate: Callable[[Plan], float] | None = None, **limits: float) -> Problem:
    """A problem of these sites within limits; `evaluate` sees plans whose rows name the options by their ranks."""

    def plan(chosen: Mapping[str, Option]) -> Plan:
        from rankwise import PlanRow

        return Plan(rows=tuple(PlanRow(site=name, **vars(option)) for name, option in chosen.items()))

    kept = [replace(s, costs={unit: s.costs[unit] for unit in limits}) for s in sites]
    return Problem(sites=tuple(kept), limits=limits, plan=plan, evaluate=evaluate)

"""Why a budget cannot be met: which layers stay dense, and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from ..network.sites import Sites
from ..plan import dense_option
from ..running.guards import unwrap
from .budgets import check_keep
from .constraints import Constraints
from .prices import Prices
from .units import UNITS

GROUPS, NAMED = 4, 3  # groups of layers that a message names, and layers of each
NO_SITE = "no kind of layer that can be factorised"


def check_budgets(
    model: nn.Module, sites: Sites, keep: Mapping[str, float | str] | None, constraints: Constraints
) -> None:
    """Raise a ValueError for a budget that layers which stay dense exceed already, before anything is collected."""
    reasons = {name: reason for name, reason in constraints.reasons(sites).items() if reason}
    amounts = {unit: amount for unit, amount in check_keep(keep).items() if not UNITS[unit].is_measured} if keep else {}
    prices = Prices(unwrap(model), sites) if amounts else None
    for unit, amount in amounts.items():
        assert prices is not None
        limit, kept = prices.limit(unit, amount), prices.rest(unit)
        kept += sum(prices.of(sites[name], [dense_option(sites[name])], unit)[0] for name in reasons)
        if kept > limit:
            raise ValueError(
                f"a budget of {limit:,.0f} {unit} ({limit / prices.dense[unit]:.3f} of dense) cannot be met: "
                f"the network keeps at least {kept:,.0f} ({kept / prices.dense[unit]:.3f}), because "
                f"{remainder(prices, sites, unit, reasons)}; raise the budget, or allow more sites"
            )


def remainder(prices: Prices, sites: Sites, unit: str, reasons: Mapping[str, str]) -> str:
    """How much of a unit is in sites that stay dense for some reasons, the largest share first; "" if none is."""
    total = prices.dense[unit] or 1
    shares = {name: prices.of(sites[name], [dense_option(sites[name])], unit)[0] / total for name in reasons}
    others = {name: cost / total for name, cost in prices[unit].beside().items() if cost}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():  # reasons that differ only in numbers and names count as one
        groups[re.sub(r"\d+|'[^']*'", "", reason)].append(name)
    lines = [(sum(shares[name] for name in names), reasons[names[0]], names) for names in groups.values()]
    if (rest := prices.rest(unit) / total) > 0:
        lines.append((rest, NO_SITE, list(others)))
    if not lines:
        return ""
    lines.sort(key=lambda line: -line[0])
    told = [
        f"{_percent(share)} {_named(names, {**shares, **others})}{reason}" for share, reason, names in lines[:GROUPS]
    ]
    more = f"; {len(lines) - GROUPS} more reasons" if len(lines) > GROUPS else ""
    share = sum(share for share, _, _ in lines)
    whole = prices[unit].whole
    return f"{_percent(share)} of the {whole} are in layers that cannot be factorised: {'; '.join(told)}{more}"


def _named(names: list[str], shares: Mapping[str, float]) -> str:
    if not names:
        return ""
    largest = sorted(names, key=lambda name: -shares[name])
    told = names[0] if len(names) == 1 else ", ".join(f"{name} ({_percent(shares[name])})" for name in largest[:NAMED])
    return f"in {told}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}: "


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.01 or share <= 0 else "under 1 %"

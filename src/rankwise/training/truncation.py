"""From chains of full rank to chains of low rank: EVBMF finds what is above the noise, and a fit cuts there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..factorisation import factorise
from ..formats import LowRank
from ..network.find import find
from ..network.sites import Sites
from ..plan import Curve, Plan
from ..planning.choose import choose
from ..planning.profile import profile
from ..ranks import Rule
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.verbs import verb
from .expand import merge_


@verb
def truncate(
    model: nn.Module,
    example: Any,
    *,
    rule: str | Rule = "evbmf",
    keep: Mapping[str, float] | None = None,
    data: Iterable[Any] | None = None,
    round_to: int | str = 1,
) -> tuple[nn.Module, Plan]:
    """Merge every chain of full rank and factorise it at the rank that its weight needs.

    The rule sees the unfoldings of the merged weights; for EVBMF the rank is the number of singular values above the
    noise. If the factors are orthonormal, these are the singular values of the cores.

    Args:
        model: with chains of `expand_`; it is not changed. Every chain keeps its format.
        example: a batch for counting MACs.
        rule: "evbmf", with settings after a colon ("evbmf:weakening=0.6,empty=one"), or any other rule.
        keep: budget for the whole network, as a share of it with its chains merged: all ranks are scaled alike, up or
            down, to the largest that meet it. A rule that needs a budget uses it directly.
        data: batches of inputs: layers are fitted one after the other to what the network computes on them; None fits
            them to their weights.
        round_to: ranks are multiples of this, rounded up.

    Returns:
        The small network and its plan. A layer that would cost more than the dense one stays dense.

    Raises:
        ValueError: for a model without chains, or as `rankwise.choose`.

    Example:
        >>> import torch, rankwise as rw
        >>> from rankwise.training import expand_
        >>> model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(1, 64)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.randn(64, 5) @ torch.randn(5, 64))
        >>> small, plan = truncate(expand_(model, rw.find(model, x)), x)
        >>> plan["0"].ranks
        (5,)
    """
    model = unwrap(model)
    formats = {name: part.format.name for name, part in model.named_modules() if isinstance(part, LowRank)}
    merged = merge_(copied(model))
    sites = find(merged, example)
    curves = _curves(merged, sites, formats, round_to)
    expanded = [name for name in sites if name in formats]  # by name: embeddings too
    plan = choose(merged, sites, rule=rule, keep=keep, metric="weight", curves=curves, include=["*", *expanded])
    return factorise(merged, plan, sites, data=data), plan


def _curves(model: nn.Module, sites: Sites, formats: Mapping[str, str], round_to: int | str) -> dict[str, Curve]:
    """Every site's options in its own format; a site without one stays dense."""
    own = {name: formats.get(name) for name in sites}
    curves: dict[str, Curve] = {}
    for format in dict.fromkeys(formats.values()):
        only = [name for name, wanted in own.items() if wanted == format]
        made = profile(model, sites, formats=format, metric="weight", round_to=round_to, only=only)
        curves = {**made, **curves, **{name: made[name] for name in only}}
    return curves

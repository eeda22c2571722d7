"""A format described in plain values: its equation, ranks, cost and layers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..formats import Format, Ranks
from ..formats.slr import SparseLowRank
from ..latency.grid import rank_step
from ..layers.kinds import Role
from ..names import SETTINGS
from ..network.site import Site
from . import networks, slr
from .layers import CONV, LINEAR, kind_of, layer_site

# Moves between the layers of a chain, in words.
MOVES = {"reorder": "reorder channels", "join": "join to its inputs, reorder", "place": "side by side"}


def describe(format: Format, site: Site | None = None) -> dict[str, Any]:
    """A format in plain values, for one site, else for a 3 x 3 convolution and a linear layer."""
    text, _, source = (format.__doc__ or "").partition("Source:")
    text, _, _ = text.partition("Args:")
    sites = {kind_of(site): site} if site else {"conv": layer_site(CONV), "linear": layer_site(LINEAR)}
    return {
        "name": format.name,
        "summary": format.summary,
        "use": format.use,
        "about": [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()],
        "source": " ".join(source.split()).removesuffix("."),
        "takes": _takes(format),
        "settings": {
            key: {"example": setting.example, "about": setting.about}
            for key, setting in SETTINGS.get(type(format).name, {}).items()
        },
        **{kind: _described(format, site) for kind, site in sites.items()},
    }


def half(format: Format, site: Site) -> Ranks:
    """The ranks nearest to half of the layer's MACs, among those that the format would try."""
    candidates = _family(format).candidates(format, site, rank_step(site)) or [format.limits(site)]
    return min(candidates, key=lambda ranks: abs(2 * format.cost(site, ranks, bias=False).macs - site.macs))


def _family(format: Format) -> ModuleType:
    """The module that describes formats of this kind."""
    return slr if isinstance(format, SparseLowRank) else networks


def _described(format: Format, site: Site) -> dict[str, Any]:
    """The format for one layer, or why it refuses the layer."""
    if why := format.refuses(site):
        return {"refused": why}
    ranks = half(format, site)
    cost = format.cost(site, ranks, bias=False)
    return {
        "weight_shape": site.weight_shape,
        "largest": format.limits(site),
        "ranks": ranks,
        "params": cost.params,
        "params_share": cost.params / site.params,
        "macs_share": cost.macs / site.macs,
        **_family(format).described(format, site, ranks),
    }


def _takes(format: Format) -> list[str]:
    """Kinds of layers that the format takes, tried at sizes that can be split."""
    tried = {"linear": LINEAR, "1 x 1": (64, 64, 1, 1), "1 x k": (64, 64, 1, 3), "k x k": CONV}
    taken = [name for name, shape in tried.items() if format.refuses(layer_site(shape)) is None]
    joined = {Role.HIDDEN: "hidden units", Role.HEADS: "attention heads"}
    return [*taken, *[words for role, words in joined.items() if role in format.roles]]

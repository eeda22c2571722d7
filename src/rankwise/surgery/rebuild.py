"""Replace a site's layers by new chains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..formats import Format, LowRank, Ranks
from ..layers.kinds import Role
from ..network.replacing import module_at, put
from ..network.site import Feeder


def rebuild(
    model: nn.Module,
    role: Role,
    names: Sequence[str],
    format: Format,
    ranks: Ranks,
    bias: bool,
    feeders: Sequence[Feeder] = (),
) -> LowRank:
    """Replace a site's layers by new, uninitialised chains.

    An embedding and the linear head that shares its weight get a chain each, and both hold the same Parameters. Layers
    that read the same input get a chain each, too, and share the first factor.

    Args:
        model: the network, changed in place.
        names: qualified names of its layers, its own first.
        format, ranks, bias: of the chains.
        feeders: of the site.

    Returns:
        The chain to fill, which holds the values of all; for a tied embedding the head's.

    Example:
        >>> from rankwise.formats.svd import SVD
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> chain = rebuild(model, Role.TIED, ["0", "1"], SVD(), (2,), bias=False)
        >>> model[1][1].weight is model[0][0].weight, model[1][0].weight is model[0][1].weight
        (True, True)
    """
    built = format.build_site(role, {name: module_at(model, name) for name in names}, ranks, bias, feeders)
    put(model, built.chains)
    return built.whole

"""Put a new chain in the place of a site's layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..formats import Format, LowRank, Ranks
from ..formats.svd import SVD
from ..network.replacing import module_at, put
from ..network.ties import is_tied


def rebuild(model: nn.Module, site_names: Sequence[str], format: Format, ranks: Ranks, bias: bool) -> LowRank:
    """Put a new chain in the place of a site's layers, values not set.

    An embedding and the linear head that shares its weight get a chain each, and both hold the same Parameters.

    Args:
        model: the network, changed in place.
        site_names: qualified names of the site: its own and its aliases.
        format: of the chain.
        ranks: its ranks.
        bias: whether it has one.

    Returns:
        The chain to fill; of a tied embedding that of the head, which holds all values of both.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> chain = rebuild(model, ["0", "1"], SVD(), (2,), bias=False)
        >>> model[1][1].weight is model[0][0].weight, model[1][0].weight is model[0][1].weight
        (True, True)
    """
    layers = {name: module_at(model, name) for name in site_names}
    if not is_tied(layers.values()):
        chain = format.build(layers[site_names[0]], ranks, bias)
        put(model, dict.fromkeys(site_names, chain))
        return chain
    assert isinstance(format, SVD)  # all other formats refuse such a site
    tables = [layer for layer in layers.values() if isinstance(layer, nn.Embedding)]
    heads = [layer for layer in layers.values() if layer not in tables]
    table = format.build(tables[0], ranks, bias=False)
    head = format.build_head(heads[0], table, bias)
    put(model, {name: table if layer in tables else head for name, layer in layers.items()})
    return head

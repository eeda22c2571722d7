"""The sites of a network described in plain values."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..formats.weights import site_weight
from ..linalg.spectrum import effective_rank_of, singular_values, stable_rank_of
from ..network.site import Site
from ..network.sites import Sites


def spectrum(network: nn.Module, site: Site) -> tuple[float, float]:
    """Stable and effective rank of a site's weight, averaged over the groups of a grouped convolution."""
    weight = site_weight(network, site)
    values = singular_values(weight.reshape(site.groups, weight.shape[0] // site.groups, -1))
    return float(stable_rank_of(values).mean()), float(effective_rank_of(values).mean())


def document(sites: Sites, ranks: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """All sites in plain values; `ranks` holds stable and effective rank by name."""
    rows = [
        {
            "name": name,
            "aliases": site.aliases,
            "kind": site.kind,
            "weight_shape": site.weight_shape,
            "groups": site.groups,
            "params": site.params,
            "macs": site.macs,
            "macs_share": site.macs / sites.total_macs if sites.total_macs else 0.0,
            "break_even": site.break_even,
            "stable_rank": ranks[name][0],
            "effective_rank": ranks[name][1],
            "dense_because": site.dense_because,
            "unless_named": site.unless_named,
        }
        for name, site in sites.items()
    ]
    return {
        "sites": rows,
        "total_params": sites.total_params,
        "total_macs": sites.total_macs,
        "other_macs": sites.other_macs,
        "not_counted": sites.not_counted,
        "never_called": sites.never_called,
        "fingerprint": sites.fingerprint,
    }

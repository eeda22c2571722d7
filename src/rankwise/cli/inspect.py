"""`rankwise inspect`: what can be factorised and what it costs today."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..network.site import Site
    from ..network.sites import Sites


def inspect(
    model: options.Model,
    weights: options.Weights = None,
    data: options.DataOption = None,
    input_shape: options.InputShape = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Show every layer that can be factorised, what it costs, and how much of its rank it uses.

    Example: [bold]rankwise inspect torchvision:resnet18 --weights resnet18.pth --input-shape 3,224,224[/bold]

    [dim]break-even[/dim] is the rank below which two thin layers are cheaper than the layer. [dim]stable rank[/dim]
    ‖W‖²/σ₁² and [dim]effective rank[/dim] exp(entropy of σ) say how many directions the weight uses: far below
    break-even, a layer has something to give.
    """
    with Output(json, debug=debug) as out:
        import torch

        from ..inputs.data import DataOptions
        from ..inputs.loading import load_example
        from ..inputs.models import load_model
        from ..network.find import find
        from .tables import sites_table

        torch.manual_seed(seed)
        with out.step("loading the network"):
            network = load_model(model, weights)
        how = DataOptions(
            transform=transform,
            size=size,
            normalise=normalise,
            root=root,
            split=split,
            seed=seed,
            batches=batches,
            example_batch=example_batch,
        )
        example = load_example(data, input_shape, how, model, network)
        with out.step("counting"):
            sites = find(network, example)
            ranks = {name: spectrum(network, site) for name, site in sites.items()}
        out.show(sites_table(sites, ranks))
        _remarks(out, sites)
        out.result("inspect", document(sites, ranks))


def spectrum(network: nn.Module, site: Site) -> tuple[float, float]:
    """Stable and effective rank of a site's weight; the mean over the groups of a grouped convolution."""
    from ..formats.weights import site_weight
    from ..linalg.spectrum import effective_rank_of, singular_values, stable_rank_of

    weight = site_weight(network, site)
    values = singular_values(weight.reshape(site.groups, weight.shape[0] // site.groups, -1))
    return float(stable_rank_of(values).mean()), float(effective_rank_of(values).mean())


def _remarks(out: Output, sites: Sites) -> None:
    """What the table does not show: layers that stay dense, and what no count covers."""
    for site_name, site in sites.items():
        if site.stays_dense:
            out.say(f"stays dense: {site_name}: {site.stays_dense}")
    for name, macs in sites.other_macs.items():
        out.say(f"counted, but no site: {name}: {macs:,} MACs")
    for why in dict.fromkeys(sites.not_counted.values()):
        names = ", ".join(name for name, reason in sites.not_counted.items() if reason == why)
        out.say(f"not counted: {why}: {names}")
    if sites.never_called:
        out.say(f"never called for this input: {', '.join(sites.never_called)}")


def document(sites: Sites, ranks: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """The figures of the table, for `--json`."""
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

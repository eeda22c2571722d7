"""`rankwise inspect`: what can be factorised and what it costs today."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import command
from .options.base import Run
from .options.data import Network, OneInput
from .output import Output

if TYPE_CHECKING:
    from ..network.sites import Sites


@command
def inspect(network: Network, data: OneInput, run: Run) -> None:
    """Show every layer that can be factorised, what it costs, and how much of its rank it uses.

    Example: [bold]rankwise inspect torchvision:resnet18 --weights resnet18.pth --input-shape 3,224,224[/bold]

    [dim]break-even[/dim] is the rank below which two thin layers are cheaper than the layer. [dim]stable rank[/dim]
    ‖W‖²/σ₁² and [dim]effective rank[/dim] exp(entropy of σ) say how many directions the weight uses: a layer far
    below break-even compresses well. Layers that differ only in a number of their names, as those of repeated blocks,
    share a row.
    """
    with run.output() as out:
        import torch

        from ..describe.sites import document, spectrum
        from ..network.find import find
        from .loading import with_layers
        from .tables import sites_table

        torch.manual_seed(run.seed)
        with out.step("loading the network"):
            dense = network.load()
        example = data.example(dense, network.model, run.seed)
        dense = with_layers(out, dense, example)
        with out.step("counting"):
            sites = find(dense, example)
            ranks = {name: spectrum(dense, site) for name, site in sites.items()}
        out.show(sites_table(sites, ranks))
        _remarks(out, sites)
        out.result("inspect", document(sites, ranks))


def _remarks(out: Output, sites: Sites) -> None:
    """What the table does not show: layers that stay dense, and what no count covers."""
    from ..network.repeats import folded

    held = [(name, site.stays_dense) for name, site in sites.items() if site.stays_dense]
    for group in folded(held):
        out.say(f"stays dense: {group.title}: {sites[group.names[0]].stays_dense}")
    for name, macs in sites.other_macs.items():
        out.say(f"counted, cannot be factorised: {name}: {macs:,} MACs")
    for why in dict.fromkeys(sites.not_counted.values()):
        names = ", ".join(name for name, reason in sites.not_counted.items() if reason == why)
        out.say(f"not counted: {why}: {names}")
    if sites.never_called:
        out.say(f"never called for this input: {', '.join(sites.never_called)}")

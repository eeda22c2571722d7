"""Find the layers that can be factorised, in one forward of an example batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..layers.kinds import site_kind
from ..running.calling import call, map_tensors, own_memory
from ..running.example import taking_example
from ..running.exclusive import exclusive
from ..running.guards import refuse_unsupported, unwrap
from ..running.pristine import pristine
from ..running.state import numbers_in
from ..running.verbs import verb
from .counting import Recorder
from .forward import Forward, Joined
from .kinds import check_joined, kinds
from .routes import Routes
from .sites import Sites, fingerprint
from .standins import unreplaceable
from .ties import fused_layers
from .vocabulary import guarded


@verb
@taking_example
def find(model: nn.Module, example: Any, *, joint: Joined = False) -> Sites:
    """Find the sites of a model and count its parameters and MACs, in one forward of an example batch.

    Args:
        model: any `nn.Module`, left as found; wrappers of `torch.compile` and data parallelism are removed.
        example: a batch: a tensor (`model(x)`), a tuple or list (`model(*x)`), or a mapping (`model(**x)`). All
            counts are for this batch.
        joint: whether layers that belong together are one site: the layers of each MLP around its hidden units
            (`network/kinds/hidden.py`), and the value and output projections around attention heads
            (`network/kinds/heads.py`); or the names of some of these kinds, "hidden" and "heads".

    Raises:
        ValueError: the model is not supported (see `guards.refuse_unsupported`), it rejects the batch, or no kind of
            joint site has such a name.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sites = find(net, torch.zeros(3, 8))
        >>> list(sites), sites.total_params, sites.total_macs
        (['0', '2'], 46, 120)
    """
    model = unwrap(model)
    refuse_unsupported(model)
    check_joined(joint)
    fused = fused_layers(model)  # before `pristine` switches the fused path off
    with pristine(model):
        with Recorder(model) as record, Routes(model) as routes:
            output = call(model, example)
        forward = Forward(model, record, fused, lambda: call(model, example), joint)
        found = [site for kind in kinds() for site in kind.find(forward)]
        sites = guarded(sorted(found, key=lambda site: forward.order[site.name]), model)
    # First name of each layer of a site -> its calls.
    calls: dict[str, dict[str, int]] = {}
    for place, site in enumerate(sites):
        names = sorted({record.name(model.get_submodule(name)) for name in site.names})
        calls[site.name] = {name: len(record.calls.get(name, ())) for name in names}
        sites[place] = replace(
            site, unpaired=next((routes.picked[name] for name in names if name in routes.picked), None)
        )
    layers = {site.name: calls[site.name] for site in sites if site.dense_because is None and site.name}
    reasons = unreplaceable(model, layers, example, output) if layers else {}
    sites = [replace(site, dense_because=reasons.get(site.name, site.dense_because)) for site in sites]
    used = {name for site in sites for name in site.names} | set(record.other_macs)
    return Sites(
        by_name={site.name: site for site in sites},
        total_params=numbers_in(model.parameters()),
        other_macs=dict(record.other_macs),
        not_counted=record.not_counted,
        never_called=tuple(
            name
            for name, module in model.named_modules()
            if name not in used and (site_kind(module) not in (None, "embedding") or isinstance(module, nn.RNNBase))
        ),
        fingerprint=fingerprint(model),
        example=map_tensors(own_memory, example),
    )


@exclusive
def total_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of a whole network for an example batch, without finding its sites."""
    model = unwrap(model)
    refuse_unsupported(model)
    with pristine(model), Recorder(model) as record:
        call(model, example_input)
    return record.total_macs

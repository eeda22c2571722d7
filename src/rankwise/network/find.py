"""Find the layers that can be factorised, in one forward of an example batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.kinds import TIED, output_first, site_kind
from ..running.batches import call, pristine
from ..running.calling import map_tensors, own_memory
from ..running.example import taking_example
from ..running.exclusive import exclusive
from ..running.guards import refuse_unsupported, unwrap
from ..running.state import numbers_in
from ..running.verbs import verb
from .counting import Recorder
from .routes import Routes
from .sites import Site, Sites, fingerprint
from .standins import unreplaceable
from .ties import Ties, fused_layers, geometry, is_tied
from .vocabulary import guarded


@verb
@taking_example
def find(model: nn.Module, example: Any) -> Sites:
    """Find the sites of a model and count its parameters and MACs, in one forward of an example batch.

    Args:
        model: any `nn.Module`; wrappers of `torch.compile` and data parallelism are looked through, and it is left
            as found.
        example: a batch: a tensor (`model(x)`), a tuple or list (`model(*x)`), or a mapping (`model(**x)`). All
            counts are for this batch as given.

    Returns:
        The sites.

    Raises:
        ValueError: the model cannot be worked on (see `guards.refuse_unsupported`), or it rejects the batch.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sites = find(net, torch.zeros(3, 8))
        >>> list(sites), sites.total_params, sites.total_macs
        (['0', '2'], 46, 120)
    """
    model = unwrap(model)
    refuse_unsupported(model)
    fused = fused_layers(model)  # before pristine switches that path off
    with pristine(model):
        with Recorder(model) as record, Routes(model) as routes:
            output = call(model, example)
        sites = [_with_routes(model, site, routes, record) for site in _sites(model, record, fused)]
    layers = {site.name: _calls(model, record, site) for site in sites if site.dense_because is None and site.name}
    reasons = unreplaceable(model, layers, example, output) if layers else {}
    sites = [replace(site, dense_because=reasons.get(site.name, site.dense_because)) for site in sites]
    used = {name for site in sites for name in (site.name, *site.aliases)} | set(record.other_macs)
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


def _with_routes(model: nn.Module, site: Site, routes: Routes, record: Recorder) -> Site:
    names = {record.name(model.get_submodule(name)) for name in (site.name, *site.aliases)}
    return replace(site, unpaired=next((routes.picked[name] for name in sorted(names) if name in routes.picked), None))


@exclusive
def total_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of a whole network for an example batch; its sites are not looked for."""
    model = unwrap(model)
    refuse_unsupported(model)
    with pristine(model), Recorder(model) as record:
        call(model, example_input)
    return record.total_macs


def _calls(model: nn.Module, record: Recorder, site: Site) -> dict[str, int]:
    """The layers of a site, each under its first name, and how often they are called."""
    names = {record.name(model.get_submodule(name)) for name in (site.name, *site.aliases)}
    return {name: len(record.calls.get(name, ())) for name in sorted(names)}


def _sites(model: nn.Module, record: Recorder, fused: Mapping[int, str]) -> list[Site]:
    ties = Ties(model)
    order = {name: place for place, name in enumerate(dict.fromkeys([*record.calls, *record.direct]))}
    users = {**fused, **{id(model.get_submodule(name)): owner for name, owner in record.direct.items()}}
    unfit = {layer: f"its weight is used directly by {owner}" for layer, owner in users.items()}
    for name in record.sized:
        unfit[id(model.get_submodule(name))] = "it is called with an output_size; give it an output_padding instead"
    for name, what in record.unusual.items():
        unfit[id(model.get_submodule(name))] = f"it is called with {what}"
    for name in order:
        layer = model.get_submodule(name)
        if (reason := _no_real_numbers(layer.weight)) is not None:
            unfit[id(layer)] = reason
    sites = []
    for group in ties.groups:
        names = {ties.names[id(layer)][0]: layer for layer in group}
        called = [name for name in names if name in order]
        if not called:
            continue
        name = min(called, key=order.__getitem__)
        further = [alias for layer in (names[name], *group) for alias in ties.names[id(layer)] if alias != name]
        tied = is_tied(group)
        tables = [name for name, layer in names.items() if tied and isinstance(layer, nn.Embedding)]
        heads = [name for name in names if name not in tables]
        if tied and (idle := next((use for use in (tables, heads) if not set(use) & set(called)), None)):
            unfit.setdefault(id(names[name]), f"its weight is tied to {idle[0]!r}, which the example input never calls")
        site = Site(
            name=name,
            aliases=tuple(dict.fromkeys(further)),
            calls=tuple(call for head in heads for call in record.calls.get(head, ())),
            lookups=sum(call.rows for table in tables for call in record.calls.get(table, ())),
            dense_because=ties.why_dense(names[name], group, unfit),
            **_described(names[name if name in heads else heads[0]], tied),
        )
        sites.append(site)
    return guarded(sorted(sites, key=lambda site: order[site.name]), model)


def _no_real_numbers(weight: Any) -> str | None:
    """Why a weight has no factors of its own type, in words."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.is_complex():
        return f"its weight is {dtype}, and formats are of real numbers"
    if not weight.is_floating_point():
        return f"its weight is {dtype}, integers; factorise the floating-point model and quantise the result"
    return None


def _described(layer: Any, tied: bool) -> dict[str, Any]:
    kind, weight, bias = site_kind(layer), layer.weight, getattr(layer, "bias", None)
    extra = 0
    if is_parametrized(layer):
        extra = sum(p.numel() for p in layer.parameters()) - sum(t.numel() for t in (weight, bias) if t is not None)
    return {
        "kind": TIED if tied else kind,
        "weight_shape": tuple(output_first(kind, weight, getattr(layer, "groups", 1)).shape),
        "has_bias": bias is not None,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "extra_params": extra,
        **geometry(layer),
    }

"""Restore a stored network on a fresh dense model: compare, build the chains, fill the tensors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import get_format
from ..layers.kinds import FED, Role, is_convolution, site_kind
from ..network.site import Site
from ..running.copying import copied
from ..running.state import DTYPES, NAMES, place, set_state, state_of
from ..surgery.folding import refolded
from ..surgery.rebuild import rebuild
from ..surgery.unfusing import reunfused
from .coding import decode
from .manifest import Manifest, StoredChain, described, fingerprint, outline
from .structure import can_be_channels_last, empty

SHOWN = 4
# By role, how many embeddings and how many other layers a site has; joint sites have two other layers or more.
_WANTED = {"layer": (0, 1), "table": (1, 0), "tied": (1, 1), "hidden": (0, 1), "heads": (0, 1), "feeder": (0, 1)}
_AGAIN = "save the artifact again"


def restored(fresh: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `fresh`, the dense architecture, with the stored chains and tensors.

    Everything is compared before anything is built. Coded tensors are compared by shape and dtype, and decoded last.

    Raises:
        ValueError: saying what differs between the artifact and the fresh model.
    """
    stored = outlined(manifest, tensors)
    fresh = refolded(reunfused(fresh, manifest.unfused), manifest.folds)
    _check_outline(fresh, manifest, stored)
    _check_ties(fresh, manifest, stored)
    sites = _sites(manifest.structure if manifest.format_version >= 5 else _with_roles(manifest.structure, stored))
    for role, chains in sites:
        _check_site(fresh, role, chains)
    _check_dtypes(manifest.structure, stored)
    model = copied(fresh)
    _build(model, sites)
    _check_filling(model, stored)
    if manifest.coded:
        stored = _with_aliases(manifest, decoded(manifest, tensors))
    _fill(model, manifest, stored)
    return model


def build_chains(model: nn.Module, structure: Sequence[StoredChain]) -> None:
    """Put new, uninitialised chains in place of the layers of a dense network, which is changed.

    Raises:
        ValueError: if the network lacks a layer, or has another one there; nothing is changed then.
    """
    _check_names(structure)
    modules = dict(model.named_modules(remove_duplicate=False))
    for chain in structure:
        for name in chain.names:
            found = _described(modules[name]) if name in modules else "nothing"
            if found != chain.dense:
                raise ValueError(
                    f"site {name!r} is {chain.dense} in the structure, and {found} in this {type(model).__name__}"
                )
    sites = _sites(structure)
    for role, chains in sites:
        _check_site(model, role, chains)
    _build(model, sites)


def _build(model: nn.Module, sites: Sequence[tuple[Role, Sequence[StoredChain]]]) -> None:
    # Building a layer draws initial values, which are overwritten: the caller's random numbers must not depend on it.
    with torch.random.fork_rng():
        for role, chains in sites:
            names, last = [name for chain in chains for name in chain.names], chains[-1]
            rebuild(model, role, names, get_format(last.format), last.ranks, last.bias)


def outlined(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored tensors by all their names, coded ones as outlines, after checking the manifest against them.

    Raises:
        ValueError: if a name has no tensor, or the structure is not the one that was saved.
    """
    if manifest.coded.keys() != (tensors.keys() if manifest.storage != "plain" else set()):
        raise ValueError(f"coded: it must name exactly the stored tensors, or none of plain ones; {_AGAIN}")
    stored = _with_aliases(manifest, {name: coded.outline() for name, coded in manifest.coded.items()} or tensors)
    _check_names(manifest.structure)
    if fingerprint(_outline(manifest, stored)) != manifest.dense_fingerprint:
        raise ValueError(f"the structure does not have the dense_fingerprint it was saved with; {_AGAIN}")
    return stored


def decoded(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors before coding; a ValueError names one that cannot be decoded."""
    if not manifest.coded:
        return dict(tensors)
    return {name: decode(name, tensors[name], coded) for name, coded in manifest.coded.items()}


def _outline(manifest: Manifest, stored: Mapping[str, Tensor]) -> dict[str, str]:
    dense = {name: chain.dense for chain in manifest.structure for name in chain.names}
    return outline({name: tuple(tensor.shape) for name, tensor in stored.items()}, dense)


def _with_aliases(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for alias, name in manifest.aliases.items():
        if name not in tensors or alias in tensors:
            raise ValueError(f"aliases: {alias!r} must stand for a stored tensor, not for {name!r}; {_AGAIN}")
    fit = {name for name, tensor in tensors.items() if can_be_channels_last(tensor)}
    if wrong := [name for name in manifest.channels_last if name not in fit]:
        raise ValueError(f"channels_last: {wrong[0]!r} is not a stored tensor of 4 or 5 dimensions; {_AGAIN}")
    return {**tensors, **{alias: tensors[name] for alias, name in manifest.aliases.items()}}


def _check_outline(fresh: nn.Module, manifest: Manifest, stored: Mapping[str, Tensor]) -> None:
    """Raise unless the fresh model has the tensors and layers of the dense network that was compressed."""
    theirs = _outline(manifest, stored)
    modules = dict(fresh.named_modules(remove_duplicate=False))
    ours = outline(
        {name: tuple(tensor.shape) for name, tensor in fresh.state_dict(keep_vars=True).items()},
        {name: _described(modules[name]) for chain in manifest.structure for name in chain.names if name in modules},
    )
    differs = [name for name in theirs if ours.get(name, theirs[name]) != theirs[name]]
    problems = [
        _few("the fresh model lacks", [f"{name} ({theirs[name]})" for name in theirs if name not in ours]),
        _few("the artifact lacks", [f"{name} ({ours[name]})" for name in ours if name not in theirs]),
        _few("these differ", [f"{name} ({theirs[name]} stored, {ours[name]} fresh)" for name in differs]),
    ]
    if found := [problem for problem in problems if problem]:
        raise ValueError(f"it was made from another network than this {type(fresh).__name__}: {'; '.join(found)}")


def _check_ties(fresh: nn.Module, manifest: Manifest, stored: Mapping[str, Tensor]) -> None:
    """Raise unless the artifact shares what the fresh model shares: else the value loaded last would win."""
    pairs = [pair for pair in state_of(fresh).aliases.items() if pair[0] in stored and pair[1] in stored]
    modules = dict(fresh.named_modules(remove_duplicate=False))
    for chain in manifest.structure:
        own = {id(modules[name]) for name in chain.names}
        pairs += [(name, chain.names[0]) for name, it in modules.items() if id(it) in own and name not in chain.names]
    for one, other in pairs:
        if one not in stored or stored[one] is not stored[other]:
            raise ValueError(
                f"the fresh model shares {one!r} with {other!r}, the artifact holds a value for each; "
                f"build the model without sharing them"
            )


def _check_names(structure: Sequence[StoredChain]) -> None:
    names = [name for chain in structure for name in chain.names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"site {twice[0]!r} is more than once in the structure; {_AGAIN}")


def _sites(structure: Sequence[StoredChain]) -> list[tuple[Role, list[StoredChain]]]:
    """The chains of each site, with its role; embeddings come before their heads."""
    by_site: dict[tuple[str, str], list[StoredChain]] = defaultdict(list)
    for chain in structure:
        by_site[chain.role, chain.site or chain.names[0]].append(chain)
    sites = []
    for (role, name), chains in by_site.items():
        tables = [chain for chain in chains if chain.kind == "embedding"]
        heads = [chain for chain in chains if chain.kind != "embedding"]
        wanted = _WANTED.get(role, (0, max(2, len(heads))))
        if (len(tables), len(heads)) != wanted:
            counts = f"{len(tables)} embeddings and {len(heads)} other layers"
            raise ValueError(f"site {name!r} of role {role!r} has {counts}; {_AGAIN}")
        sites.append((Role(role), [*tables, *heads]))
    return sites


def _with_roles(structure: Sequence[StoredChain], stored: Mapping[str, Tensor]) -> list[StoredChain]:
    """The chains of a version before 5, with roles from the factors that they share."""
    own = {
        chain: {id(tensor) for name, tensor in stored.items() if name.startswith(f"{chain.names[0]}.")}
        for chain in structure
    }
    tables = [chain for chain in own if chain.kind == "embedding"]
    pairs = [(table, head) for table in tables for head in own if head.kind == "linear" and own[table] & own[head]]
    if twice := [chain for chain, count in Counter(chain for pair in pairs for chain in pair).items() if count > 1]:
        raise ValueError(f"site {twice[0].names[0]!r} shares its factors with several others; {_AGAIN}")
    tied = {chain: table.names[0] for table, head in pairs for chain in (table, head)}
    return [
        replace(chain, role=Role.TIED.value, site=tied[chain])
        if chain in tied
        else replace(chain, role=(Role.TABLE if chain in tables else Role.LAYER).value)
        for chain in structure
    ]


def _check_site(fresh: nn.Module, role: Role, chains: Sequence[StoredChain]) -> None:
    """Raise unless format and ranks are legal for the layers, before a tensor of their size is made."""
    names = [chain.names[0] for chain in chains]
    shared = " and ".join(map(repr, names))
    layers: list[Any] = [fresh.get_submodule(name) for name in names]
    if len({(chain.format, chain.ranks) for chain in chains}) > 1:
        raise ValueError(f"{shared} share factors of different formats or ranks; {_AGAIN}")
    format, ranks = get_format(chains[0].format), chains[0].ranks
    described = [_site(*each) for each in zip(names, [chain.kind for chain in chains], layers, strict=True)]
    if role not in format.roles:
        raise ValueError(f"site {names[0]!r} cannot have format {format.name!r}: it takes no {role.value} sites")
    if role is Role.TIED and place(layers[0].weight) != place(layers[1].weight):
        raise ValueError(
            f"the artifact shares the factors of {names[0]!r} and {names[1]!r}, the fresh model has a weight for each; "
            f"tie them"
        )
    if role in FED or role is Role.FEEDER:
        size = described[0].out_features if role is Role.FEEDER else described[0].in_features
        if len(ranks) != 1 or not 1 <= ranks[0] <= size:
            raise ValueError(f"site {names[0]!r}: {format.name} cannot keep {ranks} of {size}; {_AGAIN}")
        described = []
    if role is Role.JOINT:
        if len({site.weight_shape[1:] for site in described}) > 1 or any(site.is_convolution for site in described):
            raise ValueError(f"{shared} share a factor, but not the size of their inputs; {_AGAIN}")
        rows = sum(site.out_features for site in described)
        described = [replace(described[0], weight_shape=(rows, *described[0].weight_shape[1:]))]
    for site in described:
        if reason := format.refuses(site):
            raise ValueError(f"site {site.name!r} cannot have format {format.name!r}: {reason}")
        format.check(site, ranks)


def _check_dtypes(structure: Sequence[StoredChain], stored: Mapping[str, Tensor]) -> None:
    for chain in structure:
        for name, tensor in stored.items():
            indices = tensor.dtype == torch.int32
            if name.startswith(f"{chain.names[0]}.") and not indices and NAMES[tensor.dtype] != chain.dtype:
                raise ValueError(f"tensor {name!r} is {tensor.dtype}, the structure says {chain.dtype}; {_AGAIN}")


def _check_filling(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Raise unless every tensor of the model has a stored one of its shape and kind, shared with the same others."""
    own, state = model.state_dict(keep_vars=True), state_of(model)
    for name in sorted(own.keys() | stored.keys()):
        ours = tuple(own[name].shape) if name in own else None
        theirs = tuple(stored[name].shape) if name in stored else None
        if ours != theirs:
            raise ValueError(f"tensor {name!r} has shape {theirs}, its format and ranks need {ours}; {_AGAIN}")
        if own[name].is_floating_point() != stored[name].is_floating_point():
            raise ValueError(
                f"tensor {name!r} is {stored[name].dtype} in the artifact, {own[name].dtype} in the fresh model"
            )
    for name, first in state.aliases.items():
        if stored[name] is not stored[first]:
            raise ValueError(f"the model shares {name!r} with {first!r}, the artifact holds a value for each; {_AGAIN}")


def _fill(model: nn.Module, manifest: Manifest, stored: Mapping[str, Tensor]) -> None:
    """Give every tensor of the model the shape, dtype, memory format and values of the stored one."""
    own, state = model.state_dict(keep_vars=True), state_of(model)
    model.zero_grad(set_to_none=True)
    for name, tensor in own.items():
        if (first := state.aliases.get(name, name)) != name:
            tensor.data = own[first].data
        else:
            tensor.data = empty(stored[name], tensor.device, name in manifest.channels_last)
    set_state(model, stored)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        # A buffer that the first forward makes does not exist yet, and will get the dtype of that forward.
        if name in manifest.unsaved_buffers and buffer.is_floating_point():
            buffer.data = buffer.data.to(DTYPES[manifest.unsaved_buffers[name]])


def _described(layer: nn.Module) -> str:
    kind = site_kind(layer)
    return type(layer).__name__ if kind is None else described(kind, _site("", kind, layer).weight_shape)


def _site(name: str, kind: str, layer: Any) -> Site:
    """A layer as a site, with what a format needs to check it; a parametrised weight is not computed."""
    if is_convolution(kind):
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return Site(name=name, kind=kind, weight_shape=shape, groups=layer.groups)
    if kind == "embedding":
        return Site(name=name, kind=kind, weight_shape=(layer.embedding_dim, layer.num_embeddings), has_bias=False)
    shape = (layer.out_features, layer.in_features) if kind == "linear" else tuple(layer.weight.shape[::-1])
    return Site(name=name, kind=kind, weight_shape=shape)


def _few(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what} {', '.join(items[:SHOWN])}{more}" if items else ""

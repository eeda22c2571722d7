"""Give a network's fused projections layers of their own, so that they can be factorised.

`nn.MultiheadAttention` holds one weight for query, key and value, and passes the weight of its output projection to a
function. Mixtures of experts hold one tensor for all experts. Other modules pass the weights of their layers to
`F.linear`. No layer is called there, so none can be replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.attention import PROJECTIONS, Attention
from ..layers.experts import RunsExperts, is_experts, separate_
from ..layers.functional import CallsLayers
from ..network.counting import Recorder
from ..network.replacing import replace_all
from ..network.standins import same
from ..running.calling import call, tensor_leaves
from ..running.copying import copied
from ..running.example import taking_example
from ..running.guards import refuse_unsupported, unwrap
from ..running.pristine import pristine
from ..running.state import storage_of
from ..running.verbs import verb

# Name of a module -> its layers that it calls since, from the module; none for attention and experts, whose are new.
Unfused = dict[str, tuple[str, ...]]


@verb
@taking_example
def unfused(model: nn.Module, example: Any) -> nn.Module:
    """A copy of the network that calls its projections as layers; the same outputs up to rounding.

    - `nn.MultiheadAttention` becomes `layers.attention.Attention`, with `q_proj`, `k_proj`, `v_proj` and `out_proj`.
    - Experts of transformers whose weights are one tensor get layers, `0.up`, `0.down`, `1.up` and so on.
    - Where a forward passes the weight of a layer to `F.linear`, that layer is called.
    - `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` around such attention take no fused path and make no
      nested tensors, and so call their linear layers too. Other modules keep theirs.

    The copy is an ordinary network: it trains, is factorised, saved (`load` unfuses the fresh model by itself) and
    exported.

    Args:
        model: the network; it is not changed.
        example: a batch, as for `find`.

    Returns:
        The copy, or the model itself if nothing in it is fused.

    Raises:
        ValueError: if the model is not supported, cannot be copied, or rejects the batch.

    Example:
        >>> import torch
        >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> [name for name, part in unfused(block, torch.ones(1, 3, 8)).named_modules() if isinstance(part, nn.Linear)]
        ['self_attn.out_proj', 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'linear1', 'linear2']
    """
    model = unwrap(model)
    refuse_unsupported(model)
    with pristine(model), Recorder(model) as record:
        expected = tensor_leaves(call(model, example))
    found: Unfused = {**dict.fromkeys(_fused_in(model), ()), **_hosts(model, record)}
    if not found:
        return model
    if (made := _tried(model, found, example, expected, record)) is not None:
        return made
    # Some do more than they seem to: those that work alone.
    alone = {name: each for name, each in found.items() if _tried(model, {name: each}, example, expected, record)}
    return reunfused(model, {**unfused_in(model), **alone})


def unfused_in(model: nn.Module) -> Unfused:
    """What was unfused in a network."""
    found: Unfused = {}
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, CallsLayers):
            found[name] = forward.layers
        elif isinstance(module, Attention) or isinstance(forward, RunsExperts):
            found[name] = ()
    return found


def layers_to_come(model: nn.Module) -> list[str]:
    """Names of the layers that fused weights of a network become, known before it runs."""
    found = list[str]()
    for name in _fused_in(model):
        module: Any = model.get_submodule(name)
        parts = (
            [f"{number}.{part}" for number in range(module.num_experts) for part in ("up", "down")]
            if is_experts(module)
            else PROJECTIONS
        )
        found += [f"{name}.{part}" for part in parts]
    return found


def reunfused(fresh: nn.Module, wanted: Mapping[str, Sequence[str]]) -> nn.Module:
    """A copy of a fresh model, unfused or not, whose modules of `unfused_in` call these layers.

    Raises:
        ValueError: naming what the fresh model lacks.
    """
    own = unfused_in(fresh)
    wanted = {name: tuple(layers) for name, layers in wanted.items()}
    if own == wanted:
        return fresh
    if further := sorted(own.keys() - wanted.keys()):
        raise ValueError(f"{further[0]!r} of the fresh model is unfused; give it as it is built")
    modules = dict(fresh.named_modules())
    for name, layers in wanted.items():
        inside = [modules.get(f"{name}.{layer}".lstrip(".")) for layer in layers]
        fits = all(isinstance(each, nn.Linear) for each in inside) if layers else _is_fused(modules.get(name))
        if own.get(name) != layers and not (name in modules and fits):
            what = f"calls its layers {', '.join(layers)}" if layers else "has layers in place of fused weights"
            raise ValueError(f"{name!r} of the stored network {what}; the fresh model has no such module")
    made = copied(fresh)
    parts: dict[str, Any] = dict(made.named_modules())
    new = {name: layers for name, layers in wanted.items() if name not in own}
    attention = {name for name, layers in new.items() if not layers and not is_experts(parts[name])}
    replace_all(made, {name: Attention(parts[name]) for name in attention})
    for name, layers in new.items():
        if layers:
            parts[name].forward = CallsLayers(parts[name], layers)
        elif name not in attention:
            separate_(parts[name])
    for part in made.modules():
        # Nested tensors go through fused paths alone.
        if isinstance(part, nn.TransformerEncoder) and any(isinstance(each, Attention) for each in part.modules()):
            part.use_nested_tensor = False
    return made


def _is_fused(module: nn.Module | None) -> bool:
    """Whether a module is attention as PyTorch computes it, with plain parameters, or experts in one tensor."""
    return is_experts(module) or (
        isinstance(module, nn.MultiheadAttention)
        and not isinstance(module, Attention)
        and type(module).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(module)
        and not is_parametrized(module)
    )


def _fused_in(model: nn.Module) -> list[str]:
    """Names of the modules with fused weights, without those that share their parameters with others."""
    owners: dict[int, set[int]] = defaultdict(set)  # block of memory -> ids of the modules with a parameter there
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and not nn.parameter.is_lazy(parameter):
                owners[storage_of(parameter)].add(id(module))
    return [
        name
        for name, module in model.named_modules()
        if name  # nothing holds the model itself
        and _is_fused(module)
        and all(owners[storage_of(parameter)] == {id(module)} for parameter in module.parameters(recurse=False))
    ]


def _hosts(model: nn.Module, record: Recorder) -> Unfused:
    """The modules that use weights of linear layers inside them without calling these."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for layer, host in record.hosts.items():
        prefix = f"{host}." if host else ""
        inside = layer.startswith(prefix) and isinstance(model.get_submodule(layer), nn.Linear)
        if inside and not _is_fused(model.get_submodule(host)):
            hosts[host].append(layer.removeprefix(prefix))
    return {host: tuple(layers) for host, layers in hosts.items()}


def _tried(
    model: nn.Module, found: Unfused, example: Any, expected: Sequence[Tensor], record: Recorder
) -> nn.Module | None:
    """The unfused network if it gives the same by as many calls of layers; else None."""
    trial = reunfused(model, {**unfused_in(model), **found})
    try:
        with pristine(trial), Recorder(trial) as again:
            output = tensor_leaves(call(trial, example))
    except ValueError:  # the network calls a part in a way that its replacement does not take
        return None
    called = {f"{host}.{layer}".lstrip(".") for host, layers in found.items() for layer in layers}
    # A layer that is called as well as used would be called twice.
    calls = all(len(again.calls.get(name, ())) == len(record.calls.get(name, ())) for name in called)
    return trial if calls and not called & again.direct.keys() and same(output, expected) else None

"""Layers that share weights, and the reasons why a layer must stay dense."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..layers.kinds import site_kind, spatial_dims
from ..running.guards import in_words
from ..running.pristine import HOOK_TABLES
from ..running.state import interval, place, storage_of
from .counting import own_forward


def geometry(layer: nn.Module) -> dict[str, Any]:
    """Stride, padding and the like of a convolution; empty for other layers."""
    if not spatial_dims(layer):
        return {}
    keys = ("stride", "padding", "dilation", "padding_mode", "groups", "output_padding")
    return {key: getattr(layer, key) for key in keys}


class Ties:
    """Which layers of a model share weights.

    Attributes:
        names: id of a module -> its qualified names.
        groups: the layers that can be sites, grouped by the memory of their `weight`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, module in model.named_modules(remove_duplicate=False):
            self.names[id(module)].append(name)
        self._owners: dict[int, list[tuple[tuple[int, int], nn.Module]]] = defaultdict(list)  # by block of memory
        groups: dict[object, list[nn.Module]] = defaultdict(list)
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._owners[storage_of(parameter)].append((interval(parameter), module))
            if site_kind(module):
                # A parametrised weight is computed for each layer anew: such a layer is a group of its own.
                weight = module._parameters.get("weight")
                groups[id(module) if weight is None else place(weight)].append(module)
        self.groups = list(groups.values())

    def together(self, name: str) -> list[str]:
        """All names of the layers that share the weight of a layer, its own among them."""
        groups = [[name for layer in group for name in self.names[id(layer)]] for group in self.groups]
        return next(names for names in groups if name in names)

    def why_dense(self, layer: nn.Module, group: Sequence[nn.Module], unfit: Mapping[int, str]) -> str | None:
        """Why a layer must stay dense, None where it may be factorised.

        Args:
            layer: the one that represents the group.
            group: the layers tied to its weight, itself included.
            unfit: id of a layer -> why no chain can be called in its place.
        """
        for module in group:
            if own_forward(module):
                return f"{type(module).__name__} has a forward of its own, which a factorised layer would not run"
            if id(module) in unfit:
                return unfit[id(module)]
            if module._state_dict_hooks:
                return "it has state dict hooks, which expect a weight that a factorised layer does not have"
            if len(group) > 1 and any(getattr(module, table) for table in HOOK_TABLES if table.endswith("_hooks")):
                return "it has hooks of its own and shares its weight with another layer; remove one of the two"
            if option := _lookup_option(module):
                return f"it is an embedding with {option}, which works on whole rows; switch that off to factorise it"
        groups = getattr(layer, "groups", 1)
        if groups > 1 and getattr(layer, "in_channels", 0) == groups:
            return f"depthwise: each of its {groups} groups has one input channel, which leaves nothing to factor"
        for other in group:
            # Embeddings are compared with embeddings, heads with heads.
            alike = next(each for each in (layer, *group) if is_table(each) == is_table(other))
            if _shape_of(other) != _shape_of(alike) or (is_tied(group) and site_kind(other) == "conv1d_hf"):
                return f"its weight is tied to {self._words(other)}, which has another geometry"
            if not _same(other._parameters.get("bias"), alike._parameters.get("bias")):
                return f"its weight is tied to {self._words(other)}, which has a different bias"
        # Overlapping memory counts, not only equal memory: a slice of the weight may be another module's parameter.
        inside = {id(part) for module in group for part in module.modules()}
        for name, parameter in (named for module in group for named in module.named_parameters()):
            start, end = interval(parameter)
            for (first, last), owner in self._owners[storage_of(parameter)]:
                if id(owner) not in inside and first < end and start < last:
                    return f"its {'bias' if 'bias' in name else 'weight'} is tied to {self._words(owner)}"
        return None

    def _words(self, module: nn.Module) -> str:
        return in_words(module, self.names[id(module)][0])


def is_tied(group: Iterable[nn.Module]) -> bool:
    """Whether layers with one weight include both embeddings and layers that multiply."""
    return len({is_table(layer) for layer in group}) == 2


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two parameters are the same memory, or both None."""
    return one is other if one is None or other is None else place(one) == place(other)


def is_table(layer: nn.Module) -> bool:
    """Whether rows of its weight are looked up."""
    return isinstance(layer, nn.Embedding)


def _shape_of(layer: Any) -> tuple[Any, ...]:
    """What layers tied into one site must have in common."""
    return site_kind(layer), geometry(layer), getattr(layer, "padding_idx", None)


def _lookup_option(layer: nn.Module) -> str | None:
    """The name of an option of an embedding that a chain cannot have."""
    if not isinstance(layer, nn.Embedding):
        return None
    options = {
        "max_norm": layer.max_norm is not None,
        "sparse gradients": layer.sparse,
        "scale_grad_by_freq": layer.scale_grad_by_freq,
    }
    return next((name for name, given in options.items() if given), None)


def fused_layers(model: nn.Module) -> dict[int, str]:
    """Layers whose weights `nn.TransformerEncoderLayer` passes to a fused kernel in eval mode: id -> owner, in words.

    The counting forward runs with that kernel off, so the conditions of the module's own forward are checked here.
    """
    fused: dict[int, str] = {}
    if not torch.backends.mha.get_fastpath_enabled():
        return fused
    for name, module in model.named_modules():
        if not isinstance(module, nn.TransformerEncoderLayer):
            continue
        attention = module.self_attn
        if (
            attention.batch_first
            and attention.in_proj_bias is not None
            and attention._qkv_same_embed_dim
            and attention.num_heads % 2 == 0
            and module.activation_relu_or_gelu
            and module.norm1.eps == module.norm2.eps
            and type(module).forward is nn.TransformerEncoderLayer.forward
        ):
            owner = f"the fused path of {in_words(module, name)}"
            fused.update({id(layer): owner for layer in (module.linear1, module.linear2)})
    return fused

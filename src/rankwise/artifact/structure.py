"""The structure of a compressed model, beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..formats import LowRank, is_registered
from ..formats.building import CHANNELS_LAST
from ..layers.kinds import Role, output_first
from ..layers.part import is_plain
from ..running.state import NAMES
from .manifest import FLOATS, StoredChain

# Norms whose parameters may have several dimensions.
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def chains_of(model: nn.Module) -> tuple[StoredChain, ...]:
    """Every chain of a model, with all its names; a ValueError if one was changed and cannot be built again."""
    names: dict[LowRank, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LowRank):
            names.setdefault(module, []).append(name)
    owners: dict[int, str] = {}  # id of a parameter -> the first chain that has it
    chains = []
    for chain, own in names.items():
        found = [owners.setdefault(id(parameter), own[0]) for parameter in chain.parameters()]
        shared = chain.role in (Role.TIED, Role.JOINT)
        chains.append(_chain(chain, tuple(own), next((name for name in found if name != own[0]), own[0]) * shared))
    return tuple(chains)


def _chain(chain: LowRank, names: tuple[str, ...], site: str) -> StoredChain:
    if "" in names:
        raise ValueError("the model itself is one factorised layer; wrap it first: model = nn.Sequential(model)")
    if not is_registered(chain.format.name):
        raise ValueError(
            f"site {names[0]!r}: its format {chain.format.name!r} is not registered, so it could not be loaded; call "
            f"rankwise.formats.register first"
        )
    if not all(map(is_plain, chain)):
        layers = ", ".join(type(layer).__name__ for layer in chain)
        raise ValueError(
            f"site {names[0]!r}: its {chain.format.name!r} chain consists of {layers}; only plain layers "
            f"can be stored: remove parametrisations and pruning, merge adapters"
        )
    with torch.no_grad():
        weight = chain.weight
    assert chain.kind is not None
    return StoredChain(
        names=names,
        kind=chain.kind,
        weight_shape=tuple(output_first(chain.kind, weight, getattr(chain, "groups", 1)).shape),
        format=chain.format.name,
        ranks=chain.ranks,
        bias=chain.bias is not None,
        dtype=NAMES[weight.dtype],
        role=chain.role.value,
        site=site,
    )


def channels_last_of(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the tensors in channels-last memory format."""
    return tuple(name for name, tensor in tensors.items() if _is_channels_last(tensor))


def empty(source: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """An uninitialised tensor of the shape and dtype of `source`."""
    memory_format = CHANNELS_LAST[source.dim()] if channels_last else torch.contiguous_format
    return torch.empty_like(source, device=device, memory_format=memory_format)


def can_be_channels_last(tensor: Tensor) -> bool:
    """Whether the tensor has the dimensions of a batch of images or volumes."""
    return tensor.dim() in CHANNELS_LAST


def _is_channels_last(tensor: Tensor) -> bool:
    # By strides, not is_contiguous: a 1 x 1 kernel is contiguous both ways, but its strides select the code that runs.
    if not can_be_channels_last(tensor):
        return False
    meta = torch.device("meta")
    return empty(tensor, meta, True).stride() == tensor.stride() != empty(tensor, meta, False).stride()


def unsaved_buffers_of(model: nn.Module) -> dict[str, str]:
    """Dtypes of the floating-point buffers outside the state dict; the architecture sets their values."""
    stored = model.state_dict(keep_vars=True).keys()
    return {
        name: NAMES[buffer.dtype]
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in stored and NAMES.get(buffer.dtype) in FLOATS
    }


def weights_of(model: nn.Module) -> frozenset[str]:
    """Names of the weights: floating parameters of at least two dimensions, without biases and norms."""
    return frozenset(
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if name != "bias" and NAMES.get(parameter.dtype) in FLOATS and parameter.dim() > 1 and parameter.numel() > 0
    )

"""Which models are supported: wrappers are removed, and what cannot work is refused by name, with the fix."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_OLD_NORMS = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
}

_RUNS_ONLY = "_rankwise_runs_only"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside any number of `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Raises:
        ValueError: `model` is not an `nn.Module`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(layer)) is layer
        True
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model must be a torch.nn.Module, got {type(model).__name__}; pass the module itself")
    while True:
        # The attribute gives OptimizedModule away: importing its class would import the whole compiler.
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def in_words(module: nn.Module, path: str) -> str:
    """A module in a message: its class and its qualified name."""
    return f"{type(module).__name__} ({path or 'the model itself'})"


def mark_for_running(model: nn.Module) -> None:
    """Mark a copy whose layers can only run (`kernels.optimised`)."""
    setattr(model, _RUNS_ONLY, True)


def refuse_running_copy(model: nn.Module) -> None:
    """Raise a ValueError where a model is, or holds, a copy for running."""
    for name, module in model.named_modules():
        if getattr(module, _RUNS_ONLY, False):
            raise ValueError(
                f"{f'{name!r}' if name else 'the model'} is a copy for running that rankwise.kernels.optimised made; "
                f"take the network that it was made from"
            )


def refuse_unsupported(model: nn.Module) -> None:
    """Raise where an unwrapped model cannot be counted, copied and factorised faithfully.

    Raises:
        ValueError: a copy for running; a scripted, PEFT, FSDP, quantised or compiled part; old-style weight or spectral
            norm; parameters that are lazy, on the meta device, made in inference mode, or tensor subclasses. The
            message names the part and the fix.
    """
    refuse_running_copy(model)
    for name, module in model.named_modules():
        _refuse_module(f"'{name}'" if name else "the model", module)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _refuse_tensor(name, tensor)


def _refuse_module(name: str, module: nn.Module) -> None:
    cls = type(module)
    home = cls.__module__
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{name} is a TorchScript module, whose layers are frozen; pass the Python model instead")
    if home.startswith("peft."):
        raise ValueError(f"{name} is a PEFT {cls.__name__}; pass the result of merge_and_unload() instead")
    if home.startswith("torch.distributed.fsdp"):
        raise ValueError(f"{name} is sharded by {cls.__name__}; load the full state_dict into an unsharded model")
    if "_orig_mod" in module._modules:
        raise ValueError(f"{name} is compiled by torch.compile; compile after factorising, not before")
    if home.startswith("bitsandbytes.") or (home.startswith("torch.ao.nn") and "quantized" in home):
        raise ValueError(
            f"{name} is a quantised {cls.__name__}; factorise the floating-point model and quantise the result"
        )
    for hook in module._forward_pre_hooks.values():
        if type(hook) in _OLD_NORMS:
            old, fix = _OLD_NORMS[type(hook)]
            raise ValueError(
                f"{name} carries the old torch.nn.utils.{old}, which rewrites its weight before every call; call {fix} "
                f"or use torch.nn.utils.parametrizations.{old}"
            )


def _refuse_tensor(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(f"'{name}' has no shape yet; run one forward pass first so that lazy layers are initialised")
    if tensor.is_inference():
        raise ValueError(
            f"'{name}' was made in torch.inference_mode, where no tensor can take gradients; build the model outside, "
            "or take copy.deepcopy(model) made outside"
        )
    if tensor.is_meta:
        raise ValueError(
            f"'{name}' is on the meta device and holds no values; load the weights onto a real device first"
        )
    if type(tensor.data) is not torch.Tensor:
        raise ValueError(
            f"'{name}' is a {type(tensor.data).__name__}; only plain tensors can be factorised: gather a distributed "
            "tensor with full_tensor(), or take the floating-point model instead of a quantised one"
        )

"""Run a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .attributes import Attributes, put_back
from .calling import forget
from .randomness import Randomness
from .state import writes

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@contextmanager
def pristine(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients or shortcuts; on leaving, the model is exactly as it was.

    Inside: every submodule is in eval mode; `no_grad` (never `inference_mode`: modules made under it could not be
    trained); autocast and TF32 off; the fused path of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` off, so
    that every layer is called; `module.compile()` suspended.

    Restored on leaving, also after an exception: every submodule's `training` flag, forward hooks, buffers, plain
    attributes (`attributes`) and `requires_grad`, the weights of embeddings with `max_norm`, the state of every random
    generator (`randomness`), and all switches above.

    Args:
        model: the model to run, which is also yielded. Do not move it to another device inside.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
        >>> with pristine(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    devices = sorted({p.device for p in model.parameters()}, key=str)
    forget(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(Randomness(model).kept())
        stack.enter_context(_full_precision())
        for kind in sorted({"cpu", *(device.type for device in devices)}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_restored(model))
        stack.enter_context(rows_kept(model))
        model.eval()
        yield model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and nothing else: unlike `pristine` it leaves fused kernels and compiled code on, as in use."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def rows_kept(model: nn.Module) -> Iterator[None]:
    """Restore the weights of embeddings with `max_norm` on leaving: every lookup rescales rows in place."""
    embeddings = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    weights = {id(each.weight): each.weight for each in embeddings if each.max_norm is not None}
    kept = [(weight, writes(weight), weight.detach().clone()) for weight in weights.values()]
    try:
        yield
    finally:
        for weight, version, values in kept:
            put_back(weight, version, values)


@contextmanager
def _full_precision() -> Iterator[None]:
    # PyTorch 2.9 added per-operator switches beside the two old ones, and mixing both makes the old getters raise. So
    # the old ones are set, which sets the new ones too, and both are restored, the finer ones last.
    backends = torch.backends
    homes = (
        (backends.cuda, ("matmul",)),
        (backends.cudnn, ("conv", "rnn")),
        (backends.mkldnn, ("matmul", "conv", "rnn")),
    )
    switches = [getattr(home, name) for home, names in homes for name in names if hasattr(home, name)]
    switches = [switch for switch in switches if hasattr(switch, "fp32_precision")]
    fine = [switch.fp32_precision for switch in switches]
    fast_path = backends.mha.get_fastpath_enabled()
    try:
        matmul: str | None = torch.get_float32_matmul_precision()
        tf32: bool | None = backends.cudnn.allow_tf32
    except RuntimeError:  # the user set the new switches: only those can be read
        matmul = tf32 = None
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        backends.mha.set_fastpath_enabled(fast_path)
        if matmul is not None and tf32 is not None:
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = tf32
        for switch, value in zip(switches, fine, strict=True):
            switch.fp32_precision = value


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    attributes = Attributes(model)
    training = [module.training for module in modules]
    hooks = [{table: dict(getattr(module, table)) for table in HOOK_TABLES} for module in modules]
    compiled = [module._compiled_call_impl for module in modules]
    wants_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (buffer, writes(buffer), buffer.clone())
        for module in modules
        for buffer in module._buffers.values()
        if buffer is not None
    ]
    buffer_tables = [dict(module._buffers) for module in modules]
    try:
        for module in modules:
            module._compiled_call_impl = None  # a compiled call would skip hooks
        yield
    finally:
        with ExitStack() as steps:  # every step runs, even after another failed; the last one comes first
            steps.callback(attributes.restore)
            for buffer, version, values in buffers:
                steps.callback(put_back, buffer, version, values)
            for module, flag, tables, call in zip(modules, training, hooks, compiled, strict=True):
                module.training = flag
                module._compiled_call_impl = call
                for table, entries in tables.items():
                    live = getattr(module, table)  # the same dict object: removable handles refer to it
                    live.clear()
                    live.update(entries)
            for parameter, flag in wants_grad:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)
            for module, named in zip(modules, buffer_tables, strict=True):
                module._buffers.clear()
                module._buffers.update(named)

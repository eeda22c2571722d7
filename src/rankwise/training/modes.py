"""What training needs of a network: its mode, which parameters move, the outputs of modules inside."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..network.replacing import module_at
from ..running.calling import map_tensors
from ..running.exclusive import own_thread
from ..running.pristine import evaluating

WHICH = ("factors", "all")


def trainable(model: nn.Module, which: str = "factors") -> list[nn.Parameter]:
    """The parameters that healing trains: floating-point ones, each once, whether or not they require gradients.

    Args:
        model: a factorised network.
        which: "factors" for the parameters of factorised layers and every vector beside them (biases, scales of
            normalisations); "all" for everything.

    Raises:
        ValueError: for another word, or if "factors" finds no factorised layer.

    Example:
        >>> optimiser = torch.optim.AdamW(trainable(nn.Linear(2, 2), "all"))
    """
    if which not in WHICH:
        raise ValueError(f"train is {which!r}; it is one of {', '.join(WHICH)}")
    inside = {id(p) for module in model.modules() if isinstance(module, LowRank) for p in module.parameters()}
    if which == "factors" and not inside:
        raise ValueError(f"{type(model).__name__} has no factorised layer; factorise it first, or train 'all'")
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return [p for p in floating if which == "all" or p.dim() <= 1 or id(p) in inside]


@contextmanager
def learning(model: nn.Module, parameters: Sequence[nn.Parameter], statistics: bool = False) -> Iterator[nn.Module]:
    """Eval mode, as the network will run, with gradients for the given parameters only; everything is restored.

    With `statistics` batch norms are in train mode: they normalise by the batch and follow its statistics.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    moving = {id(parameter) for parameter in parameters}
    with evaluating(model):
        for module in model.modules():
            if statistics and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        for parameter, _ in required:
            parameter.requires_grad_(id(parameter) in moving)
        try:
            yield model
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)
                parameter.grad = None


@contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, deque[Any]]]:
    """What the named modules return while the block runs, in the order of their calls.

    Outputs are copies, safe from later in-place operations; gradients flow through them.

    Raises:
        ValueError: for an unknown name, with similar ones.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
        >>> with recorded(net, ["0"]) as outputs:
        ...     _ = net(torch.zeros(4, 2))
        >>> outputs["0"][0].shape
        torch.Size([4, 3])
    """
    kept: dict[str, deque[Any]] = {name: deque() for name in names}
    with ExitStack() as hooks:
        for name, outputs in kept.items():

            def keep(module: nn.Module, args: Any, output: Any, outputs: deque[Any] = outputs) -> None:
                outputs.append(map_tensors(Tensor.clone, output))

            hooks.callback(module_at(model, name).register_forward_hook(own_thread(keep)).remove)
        yield kept


def relative_error(got: Tensor, wanted: Tensor) -> Tensor:
    """`||got - wanted||^2 / ||wanted||^2`, in float32 or better; a ValueError for different shapes.

    Example:
        >>> relative_error(torch.ones(2), 2 * torch.ones(2))
        tensor(0.2500)
    """
    if got.shape != wanted.shape:
        raise ValueError(f"outputs of shape {list(got.shape)} and {list(wanted.shape)} cannot be compared")
    exact = torch.promote_types(got.dtype, torch.float32)
    got, wanted = got.to(exact), wanted.to(got.device, exact)
    return (got - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(exact).tiny)

"""Stochastic gradient descent in a subspace of the parameters.

Letters: D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..running.guards import unwrap
from .space import Subspace


class Projected(Optimizer):
    """What optimisers in a subspace share: the network moves to the start of the subspace, and stays in it.

    Parameters are set from the coordinates anew in each step, so that rounding does not add up.

    Attributes:
        space: the subspace.
        coordinates: `v`, D.
    """

    def __init__(self, model: nn.Module, space: Subspace, defaults: dict[str, Any]) -> None:
        self.named = space.parameters(unwrap(model))
        super().__init__(list(self.named.values()), defaults)
        self.space = space.to(next(iter(self.named.values())).device)
        self.coordinates = next(iter(self.space.directions.values())).new_zeros(self.space.dim)
        self.place()

    @torch.no_grad()
    def place(self) -> None:
        """Set the network's parameters to `start + P^T v`."""
        for name, tensor in self.space.at(self.coordinates).items():
            self.named[name].copy_(tensor)

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """`P g` of the network's present gradients, D; parameters without one count as zero.

        Raises:
            ValueError: if no parameter has a gradient, or one is not finite; the network stays as it is.
        """
        gradients = {name: parameter.grad for name, parameter in self.named.items() if parameter.grad is not None}
        if not gradients:
            raise ValueError("no parameter has a gradient; call loss.backward() before step()")
        found_D = self.space.project(gradients)
        if not bool(torch.isfinite(found_D).all()):
            raise ValueError("the gradient is not finite: the training diverges; choose a smaller lr")
        return found_D

    def own_state(self) -> dict[str, Any]:
        """What is kept between steps, in the subspace."""
        return {"coordinates": self.coordinates}

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser's, with the state in the subspace."""
        return {**super().state_dict(), "subspace": self.own_state()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state, and set the network's parameters by it.

        Raises:
            ValueError: for a state of another optimiser or subspace.
        """
        own = state_dict.get("subspace")
        if not isinstance(own, Mapping) or own.keys() != self.own_state().keys():
            raise ValueError(f"this is not a state of {type(self).__name__}")
        if own["coordinates"].shape != self.coordinates.shape:
            raise ValueError(f"the state has {len(own['coordinates'])} directions, this subspace {self.space.dim}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "subspace"})
        for name, tensor in own.items():
            setattr(self, name, tensor.detach().clone().to(self.coordinates))
        self.place()


class ProjectedSGD(Projected):
    """`v <- v - lr u`, `u <- momentum u + P (g + weight_decay theta)`; `theta = start + P^T v`.

    The network is set to the start of the subspace when the optimiser is made. Its buffers are not in the subspace:
    batch norms in train mode go on with their statistics, and `torch.optim.swa_utils.update_bn` computes them anew.

    Args:
        model: the network.
        space: of `dldr` or `averaging`.
        lr: learning rate; a training in its own principal directions takes a large one.
        momentum: share of the step before.
        weight_decay: draws all parameters to zero, within the subspace.

    Raises:
        ValueError: if the subspace is of another network, or for a setting outside its range.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> steps = [{"weight": torch.tensor([[float(t), 0.0]])} for t in range(3)]
        >>> from rankwise.subspace import dldr
        >>> optimiser = ProjectedSGD(model, dldr(model, steps, dim=1), lr=0.1)
        >>> (model(torch.ones(1, 2)) - 1).square().sum().backward()
        >>> optimiser.step()
        >>> model.weight.data
        tensor([[0.2000, 0.0000]])

    Source: Li et al., IEEE TPAMI 2022, arXiv 2103.11154 (P-SGD); Li et al., 2022, arXiv 2205.13104.
    """

    def __init__(
        self, model: nn.Module, space: Subspace, *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        super().__init__(model, space, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.velocity = torch.zeros_like(self.coordinates)

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "velocity": self.velocity}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: computes the loss and its gradients first, as for any optimiser of torch.

        Returns:
            What the closure returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings = self.param_groups[0]
        slope_D = self.gradient()
        if settings["weight_decay"]:
            slope_D = slope_D + settings["weight_decay"] * self.space.project(self.named)
        self.velocity = settings["momentum"] * self.velocity + slope_D
        self.coordinates = self.coordinates - settings["lr"] * self.velocity
        self.place()
        return loss

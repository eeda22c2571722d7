"""BFGS in a subspace of the parameters.

Letters: D directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .projected_sgd import Projected
from .space import Subspace

# Curvature below which a pair says nothing.
LEAST_CURVATURE = 1e-20


class ProjectedBFGS(Projected):
    """`v <- v - t B P g`, with `B` from differences of gradients, and `t` by backtracking until

        f(v + t p) <= f(v) + sufficient t p^T P g.

    Each step computes all its losses and both gradients of its difference on one batch, so that `B` is of one function.
    A step that finds no decrease leaves the network as it is, and `B` begins anew.

    Args:
        model: the network; it is set to the start of the subspace.
        space: of `dldr` or `averaging`.
        lr: the first `t` that is tried.
        sufficient: share of the decrease that the slope promises.
        shrink: `t` is multiplied by it at each backtrack.
        backtracks: the most of them.

    Raises:
        ValueError: if the subspace is of another network, or for a setting outside its range.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> steps = [{"weight": torch.tensor([[float(t), 0.0]])} for t in range(3)]
        >>> from rankwise.subspace import dldr
        >>> optimiser = ProjectedBFGS(model, dldr(model, steps, dim=1))
        >>> def closure():
        ...     optimiser.zero_grad()
        ...     loss = (model(torch.ones(1, 2)) - 1).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(9):
        ...     _ = optimiser.step(closure)
        >>> model.weight.data.round(decimals=3)
        tensor([[1., 0.]])

    Source: Li et al., IEEE TPAMI 2022, arXiv 2103.11154 (P-BFGS; there the gradients of a difference are of two
    batches).
    """

    def __init__(
        self,
        model: nn.Module,
        space: Subspace,
        *,
        lr: float = 1.0,
        sufficient: float = 0.4,
        shrink: float = 0.4,
        backtracks: int = 20,
    ) -> None:
        for name, value in (("sufficient", sufficient), ("shrink", shrink)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1")
        if lr <= 0 or backtracks < 0:
            raise ValueError(f"lr is {lr} and backtracks {backtracks}; lr must be above 0, backtracks at least 0")
        defaults = {"lr": lr, "sufficient": sufficient, "shrink": shrink, "backtracks": backtracks}
        super().__init__(model, space, defaults)
        self.inverse = torch.eye(space.dim).to(self.coordinates)

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "inverse": self.inverse}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """One step on one batch.

        Args:
            closure: sets gradients to zero, computes the loss of the batch and its gradients; it is called once for
                the present point and once for each `t`, and must give the same loss at the same parameters.

        Returns:
            The loss before the step.

        Raises:
            ValueError: if the loss at the present point is not finite.
        """
        settings, here_D = self.param_groups[0], self.coordinates
        before, slope_D = self._looked(closure)
        if not bool(torch.isfinite(before)):
            raise ValueError(f"the loss is {float(before)}: the training diverged; begin again with a smaller lr")
        direction_D = -(self.inverse @ slope_D)
        promised, t = float(direction_D @ slope_D), settings["lr"]
        for _ in range(settings["backtracks"] + 1):
            self.coordinates = here_D + t * direction_D
            self.place()
            with torch.enable_grad():
                loss = closure().detach()
            if bool(loss <= before + settings["sufficient"] * t * promised):
                self._learn(t * direction_D, self.gradient() - slope_D)
                return before
            t *= settings["shrink"]
        self.coordinates, self.inverse = here_D, torch.eye(len(here_D)).to(here_D)
        self.place()
        return before

    def _looked(self, closure: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """Loss and gradient in the subspace at the present point."""
        with torch.enable_grad():
            loss = closure().detach()
        return loss, self.gradient()

    def _learn(self, step_D: Tensor, change_D: Tensor) -> None:
        """`B <- (I - rho s y^T) B (I - rho y s^T) + rho s s^T`, `rho = 1 / y^T s`."""
        curvature = step_D @ change_D
        if bool(curvature > LEAST_CURVATURE):
            left_DD = torch.eye(len(step_D)).to(step_D) - torch.outer(step_D, change_D) / curvature
            self.inverse = left_DD @ self.inverse @ left_DD.mT + torch.outer(step_D, step_D) / curvature

"""A few directions in the space of all parameters, with a point to start from.

Letters: D directions, N numbers of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """`theta(v) = start + P^T v` with orthonormal rows in `P`, parameter by parameter.

    Attributes:
        start: the point at `v = 0`, by name of the parameter.
        directions: `P` by name of the parameter, D x N.
        energies: share of the checkpoints' variance along each direction, D, falling.

    Example:
        >>> start, P = {"w": torch.zeros(2)}, {"w": torch.tensor([[0.6, 0.8]])}
        >>> space = Subspace(start=start, directions=P, energies=torch.ones(1))
        >>> space.at(torch.tensor([5.0]))["w"]
        tensor([3., 4.])
        >>> space.project({"w": torch.tensor([3.0, 4.0])})
        tensor([5.])
    """

    start: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]
    energies: Tensor

    @cached_property
    def dim(self) -> int:
        """Number of directions."""
        return len(next(iter(self.directions.values())))

    @property
    def bytes(self) -> int:
        """Memory of the directions."""
        return sum(P_DN.nbytes for P_DN in self.directions.values())

    def project(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`P g`: coordinates of the part of `g` that lies in the subspace, D; other names count as zero."""
        parts = [P_DN @ tensors[name].flatten().to(P_DN) for name, P_DN in self.directions.items() if name in tensors]
        return torch.stack(parts).sum(0)

    def at(self, v_D: Tensor) -> dict[str, Tensor]:
        """The parameters `start + P^T v`, in the dtypes of the start."""
        return {
            name: (start + (v_D.to(P_DN) @ P_DN).reshape(start.shape)).to(start.dtype)
            for (name, start), P_DN in zip(self.start.items(), self.directions.values(), strict=True)
        }

    def begun(self, start: Mapping[str, Tensor]) -> Subspace:
        """The same directions from another point.

        Raises:
            ValueError: for other names or shapes.
        """
        for name, tensor in self.start.items():
            if name not in start or start[name].shape != tensor.shape:
                raise ValueError(f"the new start has no {name!r} of shape {list(tensor.shape)}")
        return replace(self, start={name: start[name].detach().clone() for name in self.start})

    def to(self, device: torch.device | str) -> Subspace:
        """The same on another device."""
        start, directions = (
            {name: tensor.to(device) for name, tensor in tensors.items()} for tensors in (self.start, self.directions)
        )
        return Subspace(start=start, directions=directions, energies=self.energies.to(device))

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The network's parameters by the names of the subspace.

        Raises:
            ValueError: if the network has other ones.
        """
        own = moving(model)
        for name, start in self.start.items():
            if name not in own:
                raise ValueError(f"the network has no parameter {name!r}, which the subspace was made with")
            if own[name].shape != start.shape:
                raise ValueError(
                    f"parameter {name!r} is {list(own[name].shape)}, and {list(start.shape)} in the subspace; record "
                    "checkpoints of this network"
                )
        if more := own.keys() - self.start.keys():
            raise ValueError(
                f"the subspace has no directions for {sorted(more)[0]!r}; record checkpoints of this network"
            )
        return {name: own[name] for name in self.start}


def moving(model: nn.Module) -> dict[str, nn.Parameter]:
    """The floating-point parameters of a network, each once.

    Raises:
        ValueError: if there are none.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if not found:
        raise ValueError(f"{type(model).__name__} has no floating-point parameters to train")
    return found

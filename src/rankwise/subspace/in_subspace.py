"""A training that records its first part, and goes on in the directions of the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..running.guards import unwrap
from ..training.technique import Step, Technique
from .directions import averaging, dldr
from .space import Subspace, moving

KINDS = ("dldr", "averaging")


class InSubspace(Technique):
    """`theta <- start + P^T P (theta - start)` after each step of the second part of a training.

    With SGD this is SGD on projected gradients, whatever the momentum; AdamW scales its steps first. The parameters of
    the first part are kept in memory, and in checkpoints, until the directions are known.

    Args:
        dim: number of directions.
        after: share of the training that is recorded.
        count: number of records, at equal distances; more than `dim`.
        kind: "dldr", from the last record on, or "averaging", from the mean of all.
        memory_gb: the most that records, and then directions, may take.

    Raises:
        ValueError: for settings out of range; later, if the records span too few directions.

    Example:
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Linear(8, 8), torch.randn(64, 8)
        >>> loss = lambda inputs, _: (model(inputs) - inputs).square().mean()
        >>> kept = InSubspace(dim=2, count=4)
        >>> _ = Loop(model, loss, Samples.of(x), LoopOptions(epochs=8, batch=16), techniques=[kept]).run()
        >>> kept.space.dim
        2

    Source: Li et al., IEEE TPAMI 2022, arXiv 2103.11154, and Li et al., 2022, arXiv 2205.13104, within one training.
    """

    def __init__(
        self, *, dim: int = 40, after: float = 0.5, count: int = 81, kind: str = "dldr", memory_gb: float = 4.0
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it is {' or '.join(KINDS)}")
        if not 0 < after < 1 or not 1 <= dim < count:
            raise ValueError(
                f"after is {after}, dim {dim}, count {count}; 0 < after < 1 and 1 <= dim < count must hold"
            )
        self.dim, self.after, self.count, self.kind, self.memory_gb = dim, after, count, kind, memory_gb
        self.records: list[dict[str, Tensor]] = []
        self.space: Subspace | None = None

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        needed = self.count * sum(parameter.nbytes for parameter in moving(self._model).values()) / 1e9
        if needed > self.memory_gb:
            raise ValueError(
                f"{self.count} records of {type(self._model).__name__} take {needed:.1f} GB, more than memory_gb = "
                f"{self.memory_gb:g}; record fewer, or allow more"
            )

    def before_step(self, step: Step) -> None:
        if self.space is not None:
            return
        if step.share >= self.after:
            self._begin()
        elif step.share >= len(self.records) * self.after / self.count:
            self.records.append({name: p.detach().cpu().clone() for name, p in moving(self._model).items()})

    def after_step(self, step: Step) -> None:
        if self.space is None:
            return
        own = self.space.parameters(self._model)
        with torch.no_grad():
            moved = {name: parameter - self.space.start[name] for name, parameter in own.items()}
            for name, tensor in self.space.at(self.space.project(moved)).items():
                own[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        if self.space is None:
            return {"records": self.records}
        return {"start": dict(self.space.start), "P": dict(self.space.directions), "energies": self.space.energies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.records = list(state.get("records", ()))
        if "start" in state:
            self.space = Subspace(start=state["start"], directions=state["P"], energies=state["energies"])
            self.space = self.space.to(next(self._model.parameters()).device)

    def _begin(self) -> None:
        """Make the subspace; an average begins at the mean, the principal directions where the training is."""
        if self.kind == "averaging":
            self.space = averaging(self._model, self.records, self.dim, memory_gb=self.memory_gb)
            with torch.no_grad():
                for name, tensor in self.space.start.items():
                    moving(self._model)[name].copy_(tensor)
        else:
            found = dldr(self._model, self.records, self.dim, memory_gb=self.memory_gb)
            self.space = found.begun(dict(self._model.named_parameters()))
        self.records = []

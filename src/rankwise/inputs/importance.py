"""`--importance`: how sparse low rank selects neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ..formats import Format
    from ..importance.labelled import Labelled
    from ..network.sites import Sites
    from ..plan import Plan
    from ..statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A criterion, and whether factors are fitted again once neurons are selected."""

    criterion: str
    refit: bool

    @classmethod
    def of(cls, text: str | None) -> Selection | None:
        """`cost`, or `cost:published` for the factors of the truncated SVD; None for None."""
        from ..importance import CRITERIA

        if text is None:
            return None
        criterion, colon, how = text.partition(":")
        if criterion not in CRITERIA or (colon and how != "published"):
            raise ValueError(
                f"--importance {text!r}: write one of {', '.join(CRITERIA)}, with :published to keep the factors of "
                f"the truncated SVD"
            )
        return cls(criterion=criterion, refit=not colon)

    @property
    def needs_loss(self) -> bool:
        """Whether the criterion needs a loss on data."""
        return self.criterion in ("cost", "curvature")

    def formats(
        self, network: nn.Module, plan: Plan, source: Statistics | Sites, data: Labelled | None
    ) -> dict[str, Format]:
        """The formats of sparse low rank with this importance.

        Args:
            network: the dense network.
            plan: its plan.
            source: statistics, or sites for a criterion that needs none.
            data: pairs for a criterion that needs a loss.

        Raises:
            ValueError: if the plan has no layer in these formats.
        """
        from ..formats.slr import SparseLowRank, Staircase
        from ..importance import of_plan

        found = of_plan(network, plan, source, self.criterion, data)
        return {kind.name: kind(found, self.refit) for kind in (SparseLowRank, Staircase)}

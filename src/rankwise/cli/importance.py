"""How sparse low rank selects neurons, as it is written on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..formats import Format
    from ..plan import Plan
    from .steps import Job


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A criterion, and whether the factors are fitted to the form."""

    criterion: str
    refit: bool

    @classmethod
    def of(cls, text: str | None) -> Selection | None:
        """`cost`, or `cost:published` for the factors of the truncated SVD; None for None.

        Raises:
            ValueError: for anything else.
        """
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


def selecting(job: Job, plan: Plan, selection: Selection) -> dict[str, Format]:
    """The formats of sparse low rank with the importance that a selection asks for.

    Raises:
        ValueError: if the plan has no such layer, or data is missing that the criterion needs.
    """
    from ..formats.slr import SparseLowRank, Staircase
    from ..importance import of_plan, self_labelled

    data = None
    if selection.criterion in ("cost", "curvature"):
        if job.data is None:
            raise ValueError(f"--importance {selection.criterion} measures the loss on data; name DATA")
        labelled = job.judging.judged(job.out, job.network, job.data).labelled
        data = job.data.pairs if labelled else self_labelled(job.network, job.data.inputs)
        job.out.say(f"importance: the loss of {'the labels' if labelled else 'the own answers'} on {job.data.name}")
    source = job.statistics if selection.criterion == "activation" else job.sites
    found = of_plan(job.network, plan, source, selection.criterion, data)
    return {kind.name: kind(found, selection.refit) for kind in (SparseLowRank, Staircase)}

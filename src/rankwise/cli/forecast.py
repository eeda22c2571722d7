"""`--dry-run`: what a long command will take."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from .options.base import LongRun
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..inputs.data import Data
    from .job import Job


def only_forecast(run: LongRun, job: Job, *, builds: int = 1, engines: int = 0) -> bool:
    """Whether only a forecast was asked for, which is then shown.

    Args:
        run: says whether it is a dry run.
        builds: networks that would be built and judged.
        engines: in which they would be timed.
    """
    if not run.dry_run:
        return False
    from ..describe.forecast import compression
    from .progress import duration
    from .tables import forecast_table

    session, data = job.session, job.data or job.measured_on
    with job.out.step("probing"):
        found = compression(
            session.model,
            session.sites,
            data.inputs,
            samples=data.samples or job.batch,
            tested=job.measured_on.samples or job.batch,
            batch=job.batch,
            positions=session.sampling.positions,
            sequential=session.method == "sequential",
            builds=builds,
            engines=engines,
        )
    job.out.show(forecast_table(found))
    told = f"it may take about {duration(found.total)} by a short, rough probe, longer while others use the machine"
    job.out.say(f"nothing was written; {told}")
    job.out.result("forecast", {**asdict(found), "total_seconds": found.total})
    return True


def only_training_forecast(
    run: LongRun, out: Output, network: nn.Module, data: Data, epochs: float | None, minutes: float | None, batch: int
) -> bool:
    """The same for a training of so many passes over the samples, or minutes."""
    if not run.dry_run:
        return False
    from ..describe.forecast import training
    from ..training.options import with_limit
    from .progress import duration

    wanted = with_limit({"epochs": epochs, "minutes": minutes})
    limits = [] if wanted["minutes"] is None else [60 * wanted["minutes"]]
    if wanted["epochs"] is not None:
        with out.step("probing"):
            samples, passes = data.samples or batch, wanted["epochs"]
            limits.append(training(network, data.inputs, samples=samples, batch=batch, epochs=passes))
    out.say(f"nothing was written; the training may take about {duration(min(limits))}, and judging it some more")
    out.result("forecast", {"seconds": min(limits), "samples": data.samples})
    return True

"""`rankwise compress`: all steps, from a network and data to an artifact and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .forecast import only_forecast
from .options.base import LongRun, Out, output
from .options.choosing import Budget, Factorising
from .options.data import Calibration, Network
from .options.measuring import TimedAndFigured
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..work import Work
    from .job import Job


Report = Annotated[
    bool, output("--report", "Also write report.html into the artifact, as rankwise report does; needs matplotlib.")
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run that can be stopped."""

    checkpoint: Annotated[
        Path | None,
        output(
            "--checkpoint FOLDER",
            "Checkpoint folder, updated throughout the run, to resume from; removed once the artifact is written.",
        ),
    ] = None
    resume: Annotated[bool, output("--resume", "Resume from --checkpoint; begin where there is none yet.")] = False

    def work(self, out: Output, out_folder: Path) -> Work:
        """The checkpoint to resume from and to update."""
        from ..work import MANIFEST, Work

        folder = self.checkpoint
        if folder is None:
            if self.resume:
                raise ValueError("--resume needs a folder to resume from: --checkpoint FOLDER")
            return Work()
        if out_folder.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"--checkpoint {folder} lies in -o {out_folder}, which is for the artifact; name another")
        there = (folder / MANIFEST).is_file()
        if self.resume and not there:
            out.note(f"there is no checkpoint {folder} yet: starting from the beginning")
        return Work(folder, self.resume and there)


@command
def compress(
    network: Network,
    out_folder: Out,
    budget: Budget,
    data: Calibration,
    way: Factorising,
    timing: TimedAndFigured,
    checkpoint: Checkpoint,
    run: LongRun,
    report: Report = False,
) -> None:
    """Compress a network to a budget and measure what that did.

    Example: [bold]rankwise compress nets.py:build pictures/ --weights net.pth --size 32 --keep macs=0.5 -o out/[/bold]

    DATA needs no labels: a few hundred inputs such as the network will see. The folder of [bold]-o[/bold] receives the
    artifact (rankwise.json, model.safetensors) and plan.yaml, which you may edit and pass to
    [bold]rankwise apply[/bold]. Instead of DATA, statistics from [bold]rankwise collect[/bold] are enough
    ([bold]--stats FILE[/bold]), even of other data.

    With [bold]--checkpoint FOLDER[/bold] a run that was stopped can be resumed with [bold]--resume[/bold] and otherwise
    the same options; it ends with the same network.
    """
    with run.output(writes=[out_folder, data.stats]) as out:
        from ..inputs.importance import Selection
        from .job import Job
        from .results import finish

        way.check()
        way = way if budget.named is None else way.one_shot()
        timing.check()
        if report:
            from ..export.extras import require

            require("--report", "report", "matplotlib")
        figured, share, judging = timing.timing(), budget.share(), budget.judging()
        wishes = budget.wishes(judging.fit, network.rule)
        from ..planning.wishes import Asked  # imports torch: what is spelled wrong is reported before

        work = checkpoint.work(out, out_folder)
        out.if_stopped(lambda: _kept(work))
        selection = Selection.of(way.importance)
        where = timing.wishes(Asked.of(**wishes).needs_times, wanted=not network.is_transformer)
        start = partial(Job.start, judging=judging, wishes=wishes, folder=out_folder, way=way, work=work)
        job = start(out, network, data, run.seed, joint=budget.joint)
        job.measured_on.example(timing.latency_batch)  # batches too small for the timing fail here, before the work
        if only_forecast(run, job, engines=len(figured.engines)):
            return
        job.begin(_identity(job, wishes, budget, way, timing if where["timed"] else None))
        plan = job.plan(wishes, share, where, timing.latency_batch)
        small = job.factorise(plan, selection)
        finish(job, small, plan, out_folder, command="compress", timing=figured, storage=way.storage)
        work.remove()
        if report:
            _report(job, small, wishes, out_folder)


def _report(job: Job, small: nn.Module, wishes: dict[str, Any], folder: Path) -> None:
    """Write the page, while the networks and the statistics are at hand."""
    from ..report import write_page
    from .report import PAGE, findings

    write_page(findings(job, folder, small, wishes, job.out.run), folder / PAGE)
    job.out.say(f"report: {folder / PAGE}")


def _identity(
    job: Job, wishes: dict[str, Any], budget: Budget, way: Factorising, timing: TimedAndFigured | None
) -> dict[str, Any]:
    """The options that decide the result: a checkpoint resumes only with the same."""
    from ..files import digest

    judged = None
    if budget.target_drop is not None and job.session.work.folder is not None:
        judged = digest([digest(pair, loose=True) for pair in job.measured_on.pairs])
    return {
        **wishes,
        "method": job.session.method,
        "shrink": budget.share(),
        "importance": way.importance,
        "fold": way.fold,
        "measures": budget.metric,
        "classes_dim": budget.classes_dim,
        "judged on": judged,
        "engine": None if timing is None else [timing.engine, timing.threads, timing.latency_batch],
    }


def _kept(work: Work) -> str:
    """What a stopped run leaves behind, for its last message."""
    if work.folder is None:
        return "nothing was written; with --checkpoint FOLDER a run that is stopped can be resumed"
    return f"checkpoint {work.folder} holds {work.told()}; the same command with --resume resumes from there"

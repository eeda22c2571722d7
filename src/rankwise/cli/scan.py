"""`rankwise scan`: what can be saved? The whole front in one pass, measured, with a recommendation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .config import Given
from .forecast import only_forecast
from .options.base import LongRun, plain
from .options.choosing import Choosing
from .options.data import Calibration, Network
from .options.measuring import TimedAndFigured
from .output import Output
from .pareto import Along, At
from .parsing import parse_shares

if TYPE_CHECKING:
    from ..plan import Plan
    from ..report.scanning import Scanned
    from ..work import Work
    from .job import Job

ScanOut = Annotated[Path, plain("-o --out DIR", "Folder for the plans, front.json, front.svg and front.png.")]
Within = Annotated[float, plain("--within POINTS", "Recommend the fastest network that loses no more points.")]
Resume = Annotated[bool, plain("--resume", "Resume a scan that was stopped, with otherwise the same options.")]
KEPT, FRONT = "work", "front.json"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a scan that are done, a file each, so that a stopped scan resumes after the last one."""

    folder: Path
    resumed: bool

    def of(self, plan: Plan, share: float) -> dict[str, Any] | None:
        """A row that the scan made of this very plan before it was stopped."""
        from ..files import digest, parse_json, read_text

        file = self._file(share)
        row = parse_json(read_text(file)) if self.resumed and file.is_file() else None
        return row if isinstance(row, dict) and row.pop("plan", None) == digest(plan.to_yaml()) else None

    def keep(self, plan: Plan, share: float, row: Mapping[str, Any]) -> None:
        """Write a row that is done."""
        from ..files import digest, replacing
        from ..files.json_values import json_value

        with replacing(self._file(share)) as new:
            new.write_text(json.dumps(json_value({**row, "plan": digest(plan.to_yaml())})), encoding="utf-8")

    def remove(self, shares: Iterable[float]) -> None:
        """Remove the files, once the whole front is written."""
        for share in shares:
            self._file(share).unlink(missing_ok=True)

    def _file(self, share: float) -> Path:
        return self.folder / f"row-{share:g}.json"


@command
def scan(
    network: Network,
    data: Calibration,
    choosing: Choosing,
    timing: TimedAndFigured,
    run: LongRun,
    out_folder: ScanOut = Path("scan"),
    along: Along = "macs",
    at: At = "0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2",
    within: Within = 1.0,
    resume: Resume = False,
) -> None:
    """What can I save? Build and measure a network for each of a list of budgets, and recommend one.

    Example: [bold]rankwise scan nets.py:build pictures/ --weights net.pth --size 32 --test test.npz[/bold]

    Every network is judged on [bold]--test[/bold] (accuracy with labels, else agreement with the dense network) and
    timed in every engine that is here. The recommended one is the fastest that loses no more than
    [bold]--within[/bold] points. A scan that was stopped goes on with [bold]--resume[/bold].
    """
    with run.output(writes=[out_folder / FRONT, data.stats]) as out:
        from .job import Job

        keeps, share, judging = parse_shares(along, at), choosing.share(), choosing.judging()
        if share == "auto":
            raise ValueError("--shrink auto chooses for one plan; give a number from 0 to 1 for a list of budgets")
        timing.check()
        figured, wishes = timing.timing(), choosing.wishes(judging.fit, network.rule)
        where = timing.wishes(along == "latency", wanted=False)
        work = _work(out, out_folder / KEPT, resume)
        job = Job.start(out, network, data, run.seed, judging=judging, wishes=wishes, work=work, joint=choosing.joint)
        if only_forecast(run, job, builds=len(keeps), engines=len(figured.engines)):
            return
        if not job.measured_on.real:
            raise ValueError("a scan judges networks on data; name --test or DATA")
        job.begin({**wishes, "along": along, "engines": figured.document()["engines"], "batch": figured.batch})
        wanted = {**wishes, **job.times(where, timing.latency_batch), **job.tries(wishes), "shrink": share or 0.0}
        plans = dict(_plans(out, job, wanted, keeps))
        rows = Rows(folder=out_folder, resumed=resume)
        scanned = _scanned(out, job, plans, along, rows, figured, within)
        _write(out, out_folder, scanned, plans)
        work.remove()
        rows.remove(plans)
        _tell(out, out_folder, scanned)


def _work(out: Output, folder: Path, resume: bool) -> Work:
    """The folder that a stopped scan resumes from."""
    from ..work import MANIFEST, Work

    there = (folder / MANIFEST).is_file()
    if resume and not there:
        out.note(f"there is no scan to resume in {folder.parent}: starting from the beginning")
    if there and not resume:
        raise ValueError(f"{folder} holds a scan that was stopped: --resume goes on with it, or delete the folder")
    work = Work(folder, resume and there)
    out.if_stopped(
        lambda: f"{folder} holds {work.told()} and the networks measured so far; --resume goes on from there"
    )
    return work


def _plans(
    out: Output, job: Job, wishes: Mapping[str, Any], keeps: Sequence[Mapping[str, float]]
) -> Iterator[tuple[float, Plan]]:
    """One plan for every budget that can be met, by its share."""
    from ..planning.pareto import plans_for
    from ..planning.request import Request

    planner = job.session.planner(wishes)
    for keep in out.track(keeps, "planning"):
        (share,) = keep.values()
        try:
            (made,) = plans_for(planner, [Request(rule=wishes["rule"], keep=keep, floor=wishes["floor_rule"])])
            yield share, made
        except ValueError as error:
            out.note(f"{error}; smaller budgets are left out")
            return


def _scanned(
    out: Output, job: Job, plans: Mapping[float, Plan], along: str, rows: Rows, timing: Any, within: float
) -> Scanned:
    """Build and measure the network of every plan, but those that are done."""
    from ..figures.measured import measure
    from ..report.scanning import Scanned

    dense, data = job.session.model, job.measured_on
    judge = job.judging.judged(out, dense, data).measures[0]
    made = []
    for share, plan in out.track(list(plans.items()), "budgets"):
        row = rows.of(plan, share)
        if row is None:
            small = job.session.trial(plan)
            row = measure(out, {"dense": dense, "compressed": small}, data, timing=timing, judging=job.judging)
            rows.keep(plan, share, row)
        made.append((share, row))
    return Scanned.of(along, dict(made), judge, data.samples, within)


def _write(out: Output, folder: Path, scanned: Scanned, plans: Mapping[float, Plan]) -> None:
    """The plans, the figures, and the picture if matplotlib is there."""
    from importlib.util import find_spec

    from ..files import replacing
    from ..files.json_values import json_value

    for share, plan in plans.items():
        plan.save(folder / f"plan-{share:g}.yaml")
    with replacing(folder / FRONT) as new:
        new.write_text(json.dumps(json_value(scanned.document()), indent=2) + "\n", encoding="utf-8")
    if find_spec("matplotlib") is None:
        out.note("no picture was drawn: pip install 'rankwise[report]'")
        return
    from ..drawing import WHITE, save_picture
    from ..report.drawing import front_figure

    for suffix in (".svg", ".png"):
        save_picture(front_figure(scanned.front(), colours=WHITE), folder / f"front{suffix}")


def _apply(run: Given | None, plan: Path) -> str:
    """The command that builds the network of a plan, with the network and the data of the scan."""
    named = {each.name.replace("_", "-") for kind in (Network, Calibration) for each in fields(kind)}
    given = {} if run is None else {name: value for name, value in run.options.items() if name in named}
    options = {**given, "plan": str(plan), "out": "out"}
    return Given(command="apply", options=options, arguments=("model", "plan", "data")).line


def _tell(out: Output, folder: Path, scanned: Scanned) -> None:
    from .tables import scan_table

    out.show(scan_table(scanned))
    out.say("")
    best = scanned.recommended
    if best is None:
        out.say(f"recommended: none, as every network loses more than {scanned.within:g} points or saves nothing")
    else:
        out.say(f"recommended: {best:.0%}, {scanned.reason}. To build it:")
        out.say(f"  {_apply(out.run, folder / f'plan-{best:g}.yaml')}")
    out.say(f"plans, figures and picture: {folder}/")
    out.result("scan", {"folder": folder, **scanned.document()})

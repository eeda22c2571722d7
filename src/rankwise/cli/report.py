"""`rankwise report`: one page about an artifact that can be shown to anyone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .config import NAME, Given
from .options.base import Run, argument, plain
from .options.choosing import Choosing, Factorising
from .options.data import Calibration, Network
from .options.measuring import Judged
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..report import Findings
    from .job import Job

PAGE = "report.html"
Artifact = Annotated[Path, argument("ARTIFACT", "The folder of a compressed network.")]
PageOut = Annotated[Path | None, plain("-o --out FILE", f"The page; ARTIFACT/{PAGE} by default.", shown=False)]
Picture = Annotated[
    Path | None, plain("--picture FILE", "Also write the picture of other budgets, as .svg or .png.", shown=False)
]
Stored = Annotated[
    bool, plain("--stored", "Show only what the artifact holds; its network and data are not needed and not read.")
]


@command
def report(artifact: Artifact, run: Run, page: PageOut = None, picture: Picture = None, stored: Stored = False) -> None:
    """Write one page about a compressed network: what was done to every layer and why, and what it did.

    Example: [bold]rankwise report out/[/bold]

    The page needs no network and no further files. It shows layers before and after, singular values with the ranks
    kept, error curves, other budgets, times with intervals, what got worse, which answers changed, and the command that
    repeats the run. Network and data are read again as run.yaml in the artifact names them, from the same folder.

    Needs matplotlib: [bold]pip install 'rankwise\\[report]'[/bold].
    """
    file = page or artifact / PAGE
    with run.output(writes=[file]) as out:
        out.run = None  # a page is repeated by the artifact's own run
        from ..artifact import read
        from ..export.extras import require
        from ..inputs.models import load_artifact
        from ..report import write_page

        require("a report", "report", "matplotlib")
        manifest, given = read(artifact), _given(artifact)
        if stored or given is None or manifest.plan is None:
            found = _stored(artifact, given)
            if not stored:
                out.note(found.missing[0])
        else:
            try:
                job, wishes = _job(out, given, run.seed)
                small = load_artifact(given.options["model"], artifact)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{artifact / NAME} names a network or data that cannot be read from here: {error}; run this from "
                    f"the folder that the network was compressed in, or with --stored"
                ) from error
            found = findings(job, artifact, small, wishes, given)
        write_page(found, file)
        _write_picture(found, picture)
        out.say(f"report: {file}")
        out.result("report", {"page": file, "picture": picture, "missing": found.missing})


def findings(job: Job, artifact: Path, small: nn.Module, wishes: dict[str, Any], given: Given | None) -> Findings:
    """Everything that can be known while the networks and their data are at hand."""
    from ..artifact import read
    from ..figures.held_out import Compared
    from ..planning.wishes import Asked
    from ..report.gathering import Networks, changed, front

    plan = read(artifact).plan
    assert plan is not None
    asked = replace(Asked.of(**wishes), target_drop=None, drop=None)
    dense, source = job.session.model, job.session.source(wishes)
    networks = Networks(
        dense=dense,
        small=small,
        plan=plan,
        sites=job.session.sites,
        source=source,
        asked=asked,
        track=job.out.track,
    )
    data = job.measured_on
    planner = networks.planner()
    layers, samples = networks.layers(planner, data.inputs)
    changes = None
    if data.real:
        pairs = data.pairs if data.labelled else [(inputs, None) for inputs in data.inputs]
        changes = changed(networks, pairs, job.judging.classes_dim)
    return replace(
        _stored(artifact, given),
        layers=layers,
        samples=samples,
        front=front(planner, plan),
        changes=changes,
        notes=tuple(dict.fromkeys(job.out.notes)),
        measured=Compared.of(data, read(artifact).seen).text,
        missing=() if data.real else ("Without data, errors and answers were not measured.",),
    )


def _stored(artifact: Path, given: Given | None) -> Findings:
    """What the artifact alone tells."""
    from ..artifact import read, stored_bytes
    from ..describe import environment
    from ..report import Findings

    missing = (
        f"{artifact} holds no {NAME} that names its network, or no plan: errors, spectra, other budgets and changed "
        f"answers are not shown"
    )
    here = {**environment.versions(), "devices": "; ".join(environment.devices())}
    return replace(
        Findings.of_artifact(artifact.resolve().name, read(artifact), stored_bytes(artifact)),
        environment=here,
        line="" if given is None else given.line,
        run="" if given is None else given.text(),
        missing=(missing,),
    )


def _given(artifact: Path) -> Given | None:
    """The run that made the artifact, if it names a network."""
    file = artifact / NAME
    given = Given.read(file) if file.is_file() else None
    return given if given is not None and "model" in given.options else None


def _job(out: Output, given: Given, seed: int) -> tuple[Job, dict[str, Any]]:
    """A job with the network, the data and the wishes of the run."""
    from .job import Job

    network, data, choosing = given.group(Network), given.group(Calibration), given.group(Choosing)
    judged = given.group(Judged)
    judging = choosing.judging() if given.command in ("compress", "plan") else judged.judging()
    wishes = choosing.wishes(judging.fit, network.rule)
    way = Factorising(fold=bool(given.options.get("fold", False)))
    seed = int(given.options.get("seed", seed))
    job = Job.start(out, network, data, seed, judging=judging, wishes=wishes, way=way, joint=choosing.joint)
    return job, wishes


def _write_picture(found: Findings, picture: Path | None) -> None:
    if picture is None:
        return
    from ..drawing import WHITE, save_picture
    from ..report.drawing import front_figure

    if found.front is None:
        raise ValueError(f"--picture {picture}: the artifact alone does not tell of other budgets")
    save_picture(front_figure(found.front, colours=WHITE), picture)

"""`rankwise collect`: statistics in a file, for people who may not see the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .command import command
from .forecast import only_forecast
from .options.base import LongRun, plain
from .options.choosing import Ignore
from .options.data import Calibration, Collected, Network

if TYPE_CHECKING:
    from ..network.sites import Sites

StatsOut = Annotated[Path, plain("-o --out FILE", "The statistics file to write.", shown=False)]
Rows = Annotated[
    bool, plain("--rows", "Write rows of activations where they take less room than moments: as private as the data.")
]
Gradients = Annotated[
    bool,
    plain(
        "--gradients",
        "Also collect gradients at the layers' outputs, for --metric fisher and --rule fisher; needs no labels.",
    ),
]


@command
def collect(
    network: Network,
    stats_file: StatsOut,
    data: Collected,
    run: LongRun,
    ignore: Ignore = None,
    rows: Rows = False,
    gradients: Gradients = False,
) -> None:
    """Collect what one-shot compression needs to know about the data, without the data.

    Example: [bold]rankwise collect nets.py:build pictures/ --weights net.pth --size 32 -o stats.safetensors[/bold]

    The file holds the mean and the second moment of every layer's input, no samples. Anyone with it and the network
    can run [bold]rankwise compress MODEL --stats FILE --input-shape 3,32,32 --keep macs=0.5 -o out/[/bold].
    """
    with run.output(writes=[stats_file]) as out:
        from ..figures.judging import Judging
        from .job import Job

        if stats_file.is_dir():
            raise ValueError(f"-o {stats_file} is a folder; name a file")
        named, wishes = Calibration(**vars(data)), {"ignore": ignore or ()}
        job = Job.start(out, network, named, run.seed, judging=Judging(), wishes=wishes, gradients=gradients)
        if only_forecast(run, job, builds=0):
            return
        session = job.session
        session.only = _wanted(session.sites, ignore or (), rows)
        stats = session.statistics if rows else session.statistics.without_rows()
        stats.save(stats_file)
        held = f"rows of {len(stats.with_rows)} layers" if stats.with_rows else "no samples"
        stored = stats_file.stat().st_size
        out.say(f"statistics of {len(stats)} layers: {stats_file} ({stored / 1e6:,.1f} MB, {held})")
        document = {
            "stats_file": stats_file,
            "bytes": stored,
            "layers": {name: {"rows": found.count, "inputs": found.dim} for name, found in stats.items()},
            "with_rows": stats.with_rows,
            "gradients": gradients,
            "data": session.name,
            "samples": stats.samples,
            "seed": run.seed,
        }
        out.result("collect", document)


def _wanted(sites: Sites, ignore: Sequence[str], rows: bool) -> list[str]:
    """The layers to collect statistics of; without rows, a ValueError for one with too many inputs for a moment."""
    from ..statistics.moments import LARGEST_DENSE

    ignored = {site.name for site in sites.select(ignore)}
    wanted = [name for name, site in sites.items() if not site.dense_because and name not in ignored]
    wide = [name for name in wanted if sites[name].in_features > LARGEST_DENSE and sites[name].multiplies]
    if wide and not rows:
        raise ValueError(
            f"site {wide[0]!r} has {sites[wide[0]].in_features:,} inputs, too many for a moment (at most "
            f"{LARGEST_DENSE:,}): --ignore {wide[0]} leaves it out, --rows writes rows of its activations"
        )
    return wanted

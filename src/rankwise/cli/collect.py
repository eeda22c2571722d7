"""`rankwise collect`: statistics as a file in its own right, for people who never see the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output

StatsOut = Annotated[
    Path, typer.Option("-o", "--out", metavar="FILE", show_default=False, help="The statistics file to write.")
]
Rows = Annotated[
    bool,
    typer.Option(
        "--rows",
        help="Where rows of activations are smaller than a moment of them, write the rows: as private as the data.",
    ),
]

Gradients = Annotated[
    bool,
    typer.Option(
        "--gradients",
        help="Collect gradients at the layers' outputs too, for --metric fisher and --rule fisher; needs no labels.",
    ),
]


def collect(
    model: options.Model,
    data: options.Data,
    stats_file: StatsOut,
    weights: options.Weights = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    batch: options.Batch = 64,
    samples: options.Samples = 512,
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    ignore: options.Ignore = None,
    rows: Rows = False,
    gradients: Gradients = False,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Collect what one-shot compression needs to know of the data, without the data.

    Example: [bold]rankwise collect nets.py:build pictures/ --weights net.pth --size 32 -o stats.safetensors[/bold]

    The file holds the mean and the second moment of every layer's input, no samples. Whoever has it and the network
    runs [bold]rankwise compress MODEL --stats FILE --input-shape 3,32,32 --keep macs=0.5 -o out/[/bold].
    """
    with Output(json, debug=debug, writes=[stats_file]) as out:
        from ..inputs.data import DataOptions
        from ..statistics.collection import collect as collect_statistics
        from ..statistics.moments import LARGEST_DENSE
        from .steps import Job

        how = DataOptions(
            transform=transform,
            size=size,
            normalise=normalise,
            batch=batch,
            root=root,
            split=split,
            seed=seed,
            batches=batches,
            example_batch=example_batch,
        )
        if stats_file.is_dir():
            raise ValueError(f"-o {stats_file} is a folder; name a file")
        job = Job.start(out, model, weights, data, how, samples=samples, wishes={"ignore": ignore or ()})
        assert job.data is not None
        ignored = {site.name for site in job.sites.select(ignore or ())}
        wanted = [name for name, site in job.sites.items() if not site.dense_because and name not in ignored]
        wide = [name for name in wanted if job.sites[name].in_features > LARGEST_DENSE and job.sites[name].multiplies]
        if wide and not rows:
            raise ValueError(
                f"site {wide[0]!r} has {job.sites[wide[0]].in_features:,} inputs, too many for a moment (at most "
                f"{LARGEST_DENSE:,}): --ignore {wide[0]} leaves it out, --rows writes rows of its activations"
            )
        stats = collect_statistics(
            job.network,
            job.data.inputs,
            example=job.example,
            only=wanted,
            gradients=gradients,
            seed=seed,
            progress=out.track,
        )
        stats = stats if rows else stats.without_rows()
        stats.save(stats_file)
        size_in_bytes = stats_file.stat().st_size
        held = f"rows of {len(stats.with_rows)} layers" if stats.with_rows else "no samples"
        out.say(f"statistics of {len(stats)} layers: {stats_file} ({size_in_bytes / 1e6:,.1f} MB, {held})")
        layers = {name: {"rows": found.count, "inputs": found.dim} for name, found in stats.items()}
        out.result(
            "collect",
            {
                "stats_file": stats_file,
                "bytes": size_in_bytes,
                "layers": layers,
                "with_rows": stats.with_rows,
                "gradients": gradients,
                "data": job.data.name,
                "samples": stats.samples,
                "seed": seed,
            },
        )

"""`rankwise evaluate`: measure a network, or a compressed one beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output

Artifact = Annotated[
    Path | None, typer.Option("--artifact", metavar="DIR", help="A compressed network to measure beside the dense one.")
]
Stored = Annotated[
    bool, typer.Option("--stored", help="Show what is stored of each factorised layer: non-zeros, bytes, indices.")
]
Roofline = Annotated[
    bool,
    typer.Option(
        "--roofline", help="Show how close each layer comes to what this machine can do, for --latency-batch samples."
    ),
]


def evaluate(
    model: options.Model,
    data: options.Data,
    artifact: Artifact = None,
    weights: options.Weights = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    batch: options.Batch = 64,
    samples: options.TestSamples = None,
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    stored: Stored = False,
    roofline: Roofline = False,
    metric: options.Judge = None,
    classes_dim: options.ClassesDim = None,
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    engines: options.Engines = "auto",
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Measure parameters, MACs, bytes, latency, accuracy (with labels), and how close the dense network is.

    Example: [bold]rankwise evaluate nets.py:build test.npz --weights net.pth --artifact out/[/bold]
    """
    with Output(json, debug=debug) as out:
        from .figures import Timing, measure
        from .judging import Judging

        timing = Timing.of(engines, threads, latency_batch)
        judging = Judging.of(metric and [metric], classes_dim, fits=False)

        import torch  # what is written wrongly is told before

        from ..artifact import read, stored_bytes
        from ..factorisation.check import check_loaded
        from ..inputs.data import DataOptions
        from ..inputs.loading import load_data
        from ..inputs.models import load_artifact, load_model
        from ..surgery.folding import folded
        from .held_out import Judged
        from .steps import warn_about_random_weights
        from .tables import figures_table, roofline_table, storage_table

        torch.manual_seed(seed)
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
        with out.step("loading"):
            networks = {"dense": load_model(model, weights)}
            if artifact is not None:
                networks["compressed"] = load_artifact(model, artifact)
                if read(artifact).folds:  # as when the artifact was made: folding is not its gain
                    networks["dense"] = folded(networks["dense"])
            test = load_data(data, how, network=networks["dense"], model=model, samples=samples, default_split="test")
        if artifact is not None:
            check_loaded(networks["dense"], networks["compressed"], test.example(1))
        warn_about_random_weights(out, model, weights)
        out.say(f"data: {test.name}, {test.prepared}")
        judging.check(networks["dense"], test)
        figures = measure(out, networks, test, timing=timing, judging=judging)
        result = {"figures": figures, "measured_on": test.name, "timing": timing.document(), "seed": seed}
        if artifact is not None:
            figures["compressed"]["bytes"] = stored_bytes(artifact)
            judged = Judged.of(test, read(artifact).seen, fix="name other DATA")
            result |= judged.document()
        out.show(figures_table(figures, timing.batch))
        if artifact is not None:
            out.say(f"\n{judged.text}")
        if stored:
            from ..evaluate import storage

            kept = storage(networks.get("compressed", networks["dense"]))
            out.show(storage_table(kept))
            result["stored"] = asdict(kept)
        if roofline:
            from ..evaluate import roofline as measured

            with out.step("timing layers"):
                network = networks.get("compressed", networks["dense"])
                lines = measured(network, test.example(timing.batch), threads)
            out.show(roofline_table(lines))
            result["roofline"] = asdict(lines)
        out.result("evaluate", result)

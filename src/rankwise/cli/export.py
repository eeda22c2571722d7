"""`rankwise export`: the compressed network as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output

Artifact = Annotated[
    Path | None,
    typer.Option("--artifact", metavar="DIR", help="The compressed network; without it the dense one is exported."),
]
Absorb = Annotated[
    bool, typer.Option("--absorb", help="Let neighbours take over the index operations of slr, where that is legal.")
]
OnnxFile = Annotated[
    Path, typer.Option("-o", "--out", metavar="FILE", show_default=False, help="The ONNX file to write.")
]


def export(
    model: options.Model,
    onnx_file: OnnxFile,
    artifact: Artifact = None,
    absorb: Absorb = False,
    weights: options.Weights = None,
    data: options.DataOption = None,
    input_shape: options.InputShape = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    root: options.Root = Path("data"),
    split: options.Split = None,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Write an ONNX file and check it against onnxruntime.

    Example: [bold]rankwise export nets.py:build --artifact out/ -o model.onnx[/bold]

    The artifact knows the shape of its input; elsewhere give [bold]--input-shape[/bold] or [bold]--data[/bold].
    """
    with Output(json, debug=debug) as out:
        import torch

        from ..export import absorbed, onnx
        from .data import DataOptions
        from .figures import input_shape_of
        from .loading import load_example
        from .models import load_artifact, load_model
        from .steps import warn_about_random_weights

        torch.manual_seed(seed)
        how = DataOptions(transform=transform, size=size, normalise=normalise, root=root, split=split, seed=seed)
        with out.step("loading"):
            network = load_model(model, weights) if artifact is None else load_artifact(model, artifact)
        if artifact is None:
            warn_about_random_weights(out, model, weights)
        shape = input_shape or (None if data or artifact is None else input_shape_of(artifact))
        example = load_example(data, shape, how, model)
        with out.step("exporting"):
            written = Path(onnx(absorbed(network) if absorb else network, example, onnx_file))
        out.say(f"{written}: {written.stat().st_size:,} bytes, agrees with onnxruntime")
        out.result("export", {"file": written, "bytes": written.stat().st_size})

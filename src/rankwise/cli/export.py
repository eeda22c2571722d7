"""`rankwise export`: the network as a file for another engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..latency import Latency

Artifact = Annotated[
    Path | None,
    typer.Option("--artifact", metavar="DIR", help="The compressed network; without it the dense one is exported."),
]
Absorb = Annotated[
    bool, typer.Option("--absorb", help="Let neighbours take over the index operations of slr, where that is legal.")
]
File = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", show_default=False, help="The file to write.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="NAME", help="onnx, executorch or pt2 (torch.export); by the suffix: .onnx, .pte, .pt2."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="fp16, int8 (give --calibration) or int8-dynamic (linear layers) for onnx and executorch; fp16 or bf16 "
        "for pt2; without it as the network is.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration", metavar="DATA", help="Inputs that the ranges of int8 come from; see DATA of other commands."
    ),
]
Opset = Annotated[int | None, typer.Option("--opset", metavar="N", help="Operator set of ONNX.")]
DynamicAxes = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic-axes",
        metavar="INPUT=AXIS,AXIS",
        help="Further axes to leave open in onnx and pt2: input_ids=1, image=2,3; repeated; auto: all that the network "
        "takes at another size; none. auto unless --fixed-batch.",
    ),
]
FixedBatch = Annotated[
    bool, typer.Option("--fixed-batch", help="Fix the batch size at one; it is open without this, but in ExecuTorch.")
]


def export(
    model: options.Model,
    file: File,
    artifact: Artifact = None,
    to: To = None,
    dtype: Dtype = None,
    calibration: Calibration = None,
    samples: options.Samples = 512,
    fold: options.Fold = False,
    absorb: Absorb = False,
    opset: Opset = None,
    fixed_batch: FixedBatch = False,
    dynamic_axes: DynamicAxes = None,
    weights: options.Weights = None,
    data: options.DataOption = None,
    input_shape: options.InputShape = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    threads: options.Threads = 1,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Write a file for onnxruntime, ExecuTorch or torch, and check it in that engine.

    Example: [bold]rankwise export nets.py:build --artifact out/ -o model.onnx[/bold]

    The artifact knows the shape of its input; elsewhere give [bold]--input-shape[/bold] or [bold]--data[/bold]. Beside
    the compressed network the dense one is exported too, to show sizes and times of both.
    """
    with Output(json, debug=debug, writes=[file]) as out:
        import torch

        from ..artifact import read
        from ..export.runners import target_of, times
        from ..factorisation.check import check_loaded
        from ..inputs.data import DataOptions
        from ..inputs.loading import load_data, load_example
        from ..inputs.models import load_artifact, load_model
        from ..running.arguments import arguments
        from .figures import NOTHING_FACTORISED, all_dense, input_shape_of
        from .steps import warn_about_random_weights
        from .tables import exports_table

        torch.manual_seed(seed)
        target, axes = target_of(file, to), parse_axes(dynamic_axes)
        how = DataOptions(
            transform=transform,
            size=size,
            normalise=normalise,
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
        if artifact is None:
            warn_about_random_weights(out, model, weights)
        shape = input_shape or (None if data or artifact is None else input_shape_of(artifact))
        example = load_example(data, shape, how, model, networks["dense"])
        if artifact is not None:
            check_loaded(networks["dense"], networks["compressed"], example)
        inputs = None
        if calibration is not None:
            inputs = load_data(calibration, how, network=networks["dense"], model=model, samples=samples).inputs
        write = _writer(
            target, dtype=dtype, calibration=inputs, opset=opset, fixed_batch=fixed_batch, dynamic_axes=axes
        )
        # What an artifact has folded, the dense network beside it has too.
        fold = fold or (artifact is not None and bool(read(artifact).folds))
        prepare = partial(_prepared, fold=fold, absorb=absorb)
        with tempfile.TemporaryDirectory() as folder:
            *beside, wanted = networks
            files = {wanted: file}
            with out.step(f"exporting {wanted}"):
                write(prepare(networks[wanted]), example, file)
            for name in beside:
                with out.step(f"exporting {name}"):
                    try:
                        files[name] = write(prepare(networks[name]), example, Path(folder) / f"{name}{file.suffix}")
                    except ValueError as error:  # the file that was asked for is there all the same
                        out.note(f"the {name} network was not exported beside it: {error}")
            timed = files
            if artifact is not None and all_dense(networks[wanted]):
                out.say(NOTHING_FACTORISED)
                timed = {wanted: file}
            with out.step("measuring"):
                took = times(timed, arguments(networks[wanted], example), threads=threads, target=target)
            rows = [_row(name, files[name], took) for name in networks if name in files]
        out.show(exports_table(rows, threads))
        out.say(f"{file}: {target}{f' in {dtype}' if dtype else ''}, {file.stat().st_size:,} bytes, checked")
        result = {"file": file, "bytes": file.stat().st_size, "target": target, "dtype": dtype, "rows": rows}
        out.result("export", result)


def _row(name: str, file: Path, times: Mapping[str, Latency]) -> dict[str, Any]:
    """A file, its size, its time, and of the compressed network's how much faster it is than the dense one's."""
    row: dict[str, Any] = {"network": name, "bytes": file.stat().st_size, "milliseconds": None}
    if name in times:
        row["milliseconds"] = times[name].median * 1e3
        row["milliseconds_interval"] = [times[name].low * 1e3, times[name].high * 1e3]
    if name != "dense" and {name, "dense"} <= times.keys():
        row["speedup"] = asdict(times["dense"] / times[name])
    return row


def _prepared(network: nn.Module, *, fold: bool, absorb: bool) -> nn.Module:
    """The network with what the options want done before it is exported."""
    from ..export import absorbed, folded

    network = folded(network) if fold else network
    return absorbed(network) if absorb else network


def parse_axes(texts: list[str] | None) -> str | dict[str, list[int]] | None:
    """`image=2,3` as `{"image": [2, 3]}`; `auto`, `none`, or None as they are.

    Raises:
        ValueError: for anything else.
    """
    if not texts:
        return None
    if texts in (["auto"], ["none"]):
        return texts[0]
    axes: dict[str, list[int]] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            axes.setdefault(name, []).extend(int(number) for number in numbers.split(","))
        except ValueError:
            raise ValueError(f"--dynamic-axes {text!r}: write input_ids=1, image=2,3, auto or none") from None
    return axes


def _writer(
    target: str,
    *,
    dtype: str | None,
    calibration: Any,
    opset: int | None,
    fixed_batch: bool,
    dynamic_axes: str | dict[str, list[int]] | None,
) -> Callable[[nn.Module, Any, Path], Path]:
    """The function that writes a network for a target.

    Raises:
        ValueError: for an option that the target does not have.
    """
    from ..export import executorch, onnx, pt2

    if opset is not None and target != "onnx":
        raise ValueError(f"--opset {opset} is of ONNX; {target} has no operator sets")
    if target == "executorch" and dynamic_axes not in (None, "none"):
        raise ValueError("--dynamic-axes is of onnx and pt2; memory of an executorch file is planned for one size")
    common: Mapping[str, Any] = {"dtype": dtype, "calibration": calibration}
    if target == "executorch":
        return partial(executorch, **common)
    if target == "pt2":
        return partial(pt2, dynamic_batch=not fixed_batch, dynamic_axes=dynamic_axes, **common)
    return partial(onnx, dynamic_batch=not fixed_batch, dynamic_axes=dynamic_axes, opset=opset, **common)

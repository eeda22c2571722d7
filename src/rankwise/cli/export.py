"""`rankwise export`: the network as a file for another engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .options.base import Run, plain
from .options.choosing import Fold
from .options.data import CalibrationSamples, Network, OneInput, calibration_samples
from .options.measuring import Threads
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..latency import Latency

File = Annotated[Path, plain("-o --out FILE", "The file to write; a folder for transformers.", shown=False)]
Write = Callable[["nn.Module", Any, Path], Path]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What kind of file is written, and from which network."""

    artifact: Annotated[
        Path | None, plain("--artifact DIR", "The compressed network; by default the dense one is exported.")
    ] = None
    to: Annotated[
        str | None,
        plain(
            "--to NAME",
            "onnx, executorch or pt2 (torch.export); by the suffix: .onnx, .pte, .pt2. Or transformers: a folder for "
            "from_pretrained, an ordinary checkpoint if hidden layers alone are narrower (--uniform).",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        plain(
            "--dtype NAME",
            "fp16, int8 (give --calibration) or int8-dynamic (linear layers) for onnx and executorch; fp16 or "
            "bf16 for pt2; by default the network's own.",
        ),
    ] = None
    calibration: Annotated[
        str | None, plain("--calibration DATA", "Inputs for the ranges of int8; see DATA of other commands.")
    ] = None
    samples: CalibrationSamples = None
    fold: Fold = False
    absorb: Annotated[
        bool, plain("--absorb", "Let neighbours take over the index operations of slr, where that is legal.")
    ] = False
    opset: Annotated[int | None, plain("--opset N", "Operator set of ONNX.")] = None
    fixed_batch: Annotated[
        bool, plain("--fixed-batch", "Fix the batch size at one; by default it is open, except in ExecuTorch.")
    ] = False
    cache: Annotated[
        bool,
        plain("--cache", "Of a causal language model in onnx, keys and values are inputs and outputs too."),
    ] = False
    dynamic_axes: Annotated[
        list[str] | None,
        plain(
            "--dynamic-axes INPUT=AXIS,AXIS",
            "Further axes to leave open in onnx and pt2: input_ids=1, image=2,3; repeated; auto: all that the "
            "network takes at another size; none. auto unless --fixed-batch.",
        ),
    ] = None

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network folded and absorbed as the options ask."""
        from ..artifact import read
        from ..export import absorbed, folded

        # If the artifact's batch norms are folded, so are the dense network's, for a fair comparison.
        fold = self.fold or (self.artifact is not None and bool(read(self.artifact).folds))
        network = folded(network) if fold else network
        return absorbed(network) if self.absorb else network

    def writer(self, target: str, axes: str | dict[str, list[int]] | None, calibration: Any) -> Write:
        """The function that writes a network for a target; a ValueError for options that the target does not have."""
        from ..export import executorch, onnx, pt2

        if self.opset is not None and target != "onnx":
            raise ValueError(f"--opset {self.opset} is for onnx; {target} has no operator sets")
        if self.cache and target != "onnx":
            raise ValueError(f"--cache is for onnx; {target} files have no cache")
        if target == "executorch" and axes not in (None, "none"):
            raise ValueError("--dynamic-axes is for onnx and pt2; an executorch file plans its memory for one size")
        common: Mapping[str, Any] = {"dtype": self.dtype, "calibration": calibration}
        if target == "executorch":
            return partial(executorch, **common)
        open_axes: Mapping[str, Any] = {"dynamic_batch": not self.fixed_batch, "dynamic_axes": axes}
        if target == "pt2":
            return partial(pt2, **open_axes, **common)
        return partial(onnx, **open_axes, opset=self.opset, cache=self.cache, **common)


@command
def export(network: Network, file: File, target: Target, data: OneInput, run: Run, threads: Threads = 1) -> None:
    """Write a file for onnxruntime, ExecuTorch or torch, and check it in that engine.

    Example: [bold]rankwise export nets.py:build --artifact out/ -o model.onnx[/bold]

    The artifact knows the shape of its input; elsewhere give [bold]--input-shape[/bold] or [bold]--data[/bold]. Beside
    the compressed network the dense one is exported too, to show sizes and times of both.
    """
    with run.output(writes=[file]) as out:
        from ..export.runners import target_of
        from ..factorisation.check import check_loaded
        from ..figures.measured import input_shape_of
        from ..inputs.loading import load_data
        from .loading import load_networks
        from .tables import exports_table

        if target.to == "transformers":
            return _pretrained(out, network, target, file, run.seed)
        kind, axes, artifact = target_of(file, target.to), parse_axes(target.dynamic_axes), target.artifact
        networks = load_networks(out, network, artifact, run.seed)
        dense = networks["dense"]
        if artifact is None:
            network.warn(out)
        shape = None if data.data or data.input_shape or artifact is None else input_shape_of(artifact)
        example = data.example(dense, network.model, run.seed, shape)
        if artifact is not None:
            check_loaded(dense, networks["compressed"], example)
        inputs, how = None, data.how(run.seed)
        if (source := target.calibration) is not None:
            count = calibration_samples(source, target.samples)
            inputs = load_data(source, how, network=dense, model=network.model, samples=count).inputs
        write = target.writer(kind, axes, inputs)

        def written(network: nn.Module, path: Path) -> Path:
            return write(target.prepared(network), example, path)

        rows = _exported(out, networks, file, written, example, kind, threads)
        out.show(exports_table(rows, threads))
        dtype, size = target.dtype, file.stat().st_size
        out.say(f"{file}: {kind}{f' in {dtype}' if dtype else ''}, {size:,} bytes, checked")
        out.result("export", {"file": file, "bytes": size, "target": kind, "dtype": dtype, "rows": rows})


def _pretrained(out: Output, named: Network, target: Target, folder: Path, seed: int) -> None:
    """Write a folder for `from_pretrained`."""
    from ..inputs.hugging_face import is_pretrained
    from ..layers.low_rank import is_factorised
    from .loading import load_networks

    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"-o {folder} must be a new or an empty folder for --to transformers")
    if target.artifact is None or target.dtype or target.absorb or target.fold or target.cache or target.opset:
        raise ValueError("--to transformers writes the network of --artifact as it is; leave out other options")
    network: Any = load_networks(out, named, target.artifact, seed)["compressed"]
    if not is_pretrained(network) or not is_factorised(network):
        raise ValueError(f"--to transformers is for compressed hf: models, and {named.model} is none")
    from ..integrations.transformers import copy_tokenizer, is_private

    network.save_pretrained(folder)
    copy_tokenizer(network, folder)
    needs = "after import rankwise.integrations.transformers" if is_private(folder) else "an ordinary checkpoint"
    out.say(f"{folder}: for from_pretrained, {needs}")
    out.result("export", {"file": folder, "target": "transformers", "ordinary": not is_private(folder)})


def _exported(
    out: Output,
    networks: Mapping[str, nn.Module],
    file: Path,
    write: Callable[[nn.Module, Path], Path],
    example: Any,
    target: str,
    threads: int,
) -> list[dict[str, Any]]:
    """Write the last network to the file and the others to a temporary folder, and time all of them."""
    from ..export.runners import times
    from ..figures.measured import NOTHING_FACTORISED
    from ..layers.low_rank import is_factorised
    from ..running.arguments import arguments

    *beside, wanted = networks
    with tempfile.TemporaryDirectory() as folder:
        files = {wanted: file}
        with out.step(f"exporting {wanted}"):
            write(networks[wanted], file)
        for name in beside:
            with out.step(f"exporting {name}"):
                try:
                    files[name] = write(networks[name], Path(folder) / f"{name}{file.suffix}")
                except ValueError as error:  # the file that was asked for is written already
                    out.note(f"the {name} network was not exported beside it: {error}")
        timed = files
        if beside and not is_factorised(networks[wanted]):
            out.say(NOTHING_FACTORISED)
            timed = {wanted: file}
        with out.step("measuring"):
            took = times(timed, arguments(networks[wanted], example), threads=threads, target=target)
        return [_row(name, files[name], took) for name in networks if name in files]


def _row(name: str, file: Path, times: Mapping[str, Latency]) -> dict[str, Any]:
    """The size and time of a file; for the compressed network also its speed-up over the dense one."""
    row: dict[str, Any] = {"network": name, "bytes": file.stat().st_size, "milliseconds": None}
    if name in times:
        row["milliseconds"] = times[name].median * 1e3
        row["milliseconds_interval"] = [times[name].low * 1e3, times[name].high * 1e3]
    if name != "dense" and {name, "dense"} <= times.keys():
        row["speedup"] = asdict(times["dense"] / times[name])
    return row


def parse_axes(texts: list[str] | None) -> str | dict[str, list[int]] | None:
    """`image=2,3` as `{"image": [2, 3]}`; `auto`, `none` and None unchanged."""
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

"""Compressed networks in the engines that run them: size, time, difference from torch, storage.

    python -m benchmarks.deploy [--quick] [--networks resnet18 resnet20] [--json FILE]

`resnet18` has random weights, which do not affect speed. It is measured dense and at half its MACs (ranks in multiples
of 16), in float32 also with folded batch norms, in onnxruntime, ExecuTorch, eager torch and torch.compile, at batch 1
on one thread. `difference` is `max |engine - torch| / max |torch|` over the outputs. `resnet20` is trained: the bytes
of its artifact at half its MACs in each storage, and top-1 of its 8-bit files on 1,000 test images.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, interleaved, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.artifact import as_stored, read, stored_bytes
from rankwise.export.compare import difference
from rankwise.export.runners import TARGETS, runner
from rankwise.inputs.torchvision_shim import import_torchvision
from rankwise.names import STORAGES

ENGINES = ("network", "engine", "dtype", "what", "bytes", "milliseconds", "speedup", "difference")
STORAGE = ("network", "what", "storage", "bytes", "share", "largest_error", "top1")
EIGHT_BITS = ("network", "what", "engine", "dtype", "bytes", "top1")
# Engine, and the number types that it is measured in; None is float32.
CASES: dict[str, tuple[str | None, ...]] = {
    "torch": (None,),
    "torch.compile": (None,),
    "onnx": (None, "fp16", "int8"),
    "executorch": (None, "fp16", "int8"),
}
WRITERS: Mapping[str, Callable[..., Path]] = {"onnx": rw.export.onnx, "executorch": rw.export.executorch}
Run = Callable[[], list[Tensor]]


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet20"], choices=["resnet18", "resnet20"])
    options.add_argument("--engines", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = options.parse_args()
    arguments.threads = 1
    start(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if "resnet18" in arguments.networks:
            rounds = 10 if arguments.quick else 40
            rows += engine_rows(Path(folder), {engine: CASES[engine] for engine in arguments.engines}, rounds)
            report(rows, ENGINES, "batch 1, one thread, interleaved medians; speedup over dense")
        if "resnet20" in arguments.networks:
            task = TASKS["resnet20"](networks())
            small, _ = rw.compress(task.model, task.batches()[: 4 if arguments.quick else None], keep={"macs": 0.5})
            stored = storage_rows(Path(folder), task, small)
            report(stored, STORAGE, "what an artifact takes on disk")
            rounded = eight_bit_rows(Path(folder), task, {"dense": task.model, "compressed": small})
            report(rounded, EIGHT_BITS, "top-1 on 1,000 test images")
            rows += stored + rounded
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def engine_rows(folder: Path, cases: Mapping[str, tuple[str | None, ...]], rounds: int) -> list[Row]:
    """Every engine and number type: dense and compressed, batch norms folded and not."""
    model = import_torchvision().models.resnet18(weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    sites = rw.find(model, example)
    plan = rw.choose(model, sites, keep={"macs": 0.5}, metric="weight", round_to=16)
    plain = {"dense": model, "compressed": rw.factorise(model, plan, sites)}
    variants = plain | {f"{name}, folded": rw.export.folded(each) for name, each in plain.items()}
    with torch.no_grad():
        exact = {name: each(example) for name, each in variants.items()}
    calibration = [torch.randn(4, 3, 224, 224) for _ in range(4)]
    rows: list[Row] = []
    for engine, dtypes in cases.items():
        for dtype in dtypes:
            begin = time.perf_counter()
            runs: dict[str, Run] = {}
            bytes_of: dict[str, int] = {}
            for name, each in (variants if dtype is None else plain).items():
                if engine in WRITERS:
                    file = folder / f"{name}{TARGETS[engine][0]}"
                    given: Any = calibration if dtype == "int8" else None
                    WRITERS[engine](each, example, file, dtype=dtype, calibration=given)
                    bytes_of[name] = file.stat().st_size
                    runs[name] = partial(runner(file, threads=1), ((example,), {}))
                else:
                    runs[name] = torch_run(each, example, compiled=engine == "torch.compile")
            gaps = {name: difference(run()[0], exact[name]) for name, run in runs.items()}
            seconds = interleaved(runs, rounds)
            print(f"{engine}, {dtype or 'fp32'}: {time.perf_counter() - begin:.0f} s", flush=True)
            for name in runs:
                row: Row = {"network": "resnet18", "engine": engine, "dtype": dtype or "fp32", "what": name}
                row |= {"bytes": bytes_of[name]} if name in bytes_of else {}
                row |= {"milliseconds": 1000 * seconds[name], "speedup": seconds["dense"] / seconds[name]}
                rows.append(row | {"difference": f"{gaps[name]:.1e}"})
    return rows


def torch_run(model: nn.Module, example: Tensor, compiled: bool) -> Run:
    """The forward in torch, eager or compiled as one graph."""
    called = torch.compile(model, fullgraph=True) if compiled else model

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [called(example)]

    return run


def storage_rows(folder: Path, task: Task, small: nn.Module) -> list[Row]:
    """Bytes of the artifact in each storage, and top-1 of the loaded network."""
    rows: list[Row] = []
    plain: dict[str, int] = {}
    for what, model in (("dense", task.model), ("compressed", small)):
        for storage in STORAGES:
            rw.save(model, folder / "artifact", storage=storage)
            manifest, taken = read(folder / "artifact"), stored_bytes(folder / "artifact")
            plain.setdefault(what, taken)
            row: Row = {"network": "resnet20", "what": what, "storage": storage, "bytes": taken}
            row["share"] = taken / plain["dense"]
            if manifest.largest_error is not None:
                row["largest_error"] = manifest.largest_error
            rows.append(row | {"top1": top1(partial(_answers, as_stored(model, storage)), task)})
    return rows


def eight_bit_rows(folder: Path, task: Task, models: Mapping[str, nn.Module]) -> list[Row]:
    """Top-1 of files in 32 and 8 bits; ranges come from 256 calibration images."""
    example = task.normalise(task.images[: task.batch])
    calibration = task.batches()[:4]
    rows: list[Row] = []
    for what, model in models.items():
        for engine, write in WRITERS.items():
            for dtype in (None, "int8"):
                file = folder / f"{what}{TARGETS[engine][0]}"
                write(model, example, file, dtype=dtype, calibration=calibration if dtype else None)
                run = runner(file, threads=1)
                row: Row = {"network": "resnet20", "what": what, "engine": engine, "dtype": dtype or "fp32"}
                row |= {"bytes": file.stat().st_size}
                rows.append(row | {"top1": top1(lambda images, run=run: run(((images,), {}))[0], task)})
    return rows


def top1(scores: Callable[[Tensor], Tensor], task: Task, images: int = 1000) -> float:
    """Per cent of right answers; the last batch is filled up, because some files take only one batch size."""
    right = 0
    for first in range(0, images, task.batch):
        stop = min(first + task.batch, images)
        index = torch.arange(first, first + task.batch).clamp(max=stop - 1)
        answers = scores(task.normalise(task.images[index])).argmax(1)[: stop - first]
        right += int((answers == task.labels[first:stop]).sum())
    return 100 * right / images


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = model(images)
    return scores


if __name__ == "__main__":
    main()

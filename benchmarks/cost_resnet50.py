"""Time and memory for compressing a ResNet-50, compared with a plain Tucker decomposition and one forward pass.

    python -m benchmarks.cost_resnet50 [--quick] [--json FILE]

ResNet-50 with random weights at 224 x 224, 256 calibration images, half of its MACs, default formats. The yardstick is
`tensorly.partial_tucker` of its sixteen 3 x 3 kernels at half of their channels, plus one forward pass over the images.
Every step runs in its own process, whose peak resident memory is read at its end. The yardstick is measured before and
after the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.formats_peers import available
from rankwise.inputs.torchvision_shim import import_torchvision

COLUMNS = ("what", "samples", "seconds", "cpu_seconds", "ratio", "limit", "peak_gib", "limit_gib", "parts")
YARDSTICK = "partial_tucker + forward"
LIMITS = {"one-shot": 5.0, "sequential": 10.0}
LIMIT_GIB = 4.0
SAMPLES, QUICK_SAMPLES, BATCH = 256, 32, 8


def yardstick(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Decompose every 3 x 3 kernel at half of its channels, and run the network once over the images."""
    if not available():
        raise SystemExit("the yardstick is tensorly: pip install 'rankwise[bench]'")
    from tensorly.decomposition import partial_tucker

    began = time.perf_counter()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            weight = layer.weight.detach()
            partial_tucker(weight, rank=[size // 2 for size in weight.shape[:2]], modes=[0, 1])
    middle = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {"partial_tucker": middle - began, "forward": time.perf_counter() - middle}


def compress(method: str, model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Compress the network; seconds of each verb."""
    _, done = rw.compress(model, batches, keep={"macs": 0.5}, method=method)
    return done.seconds


def step(what: str, samples: int, seed: int) -> Row:
    """One step in this process: its seconds, the seconds of its parts, and its peak resident memory."""
    model = import_torchvision().models.resnet50(weights=None).eval()
    images = torch.randn(samples, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    batches = list(images.split(BATCH))
    run: Callable[[], dict[str, float]]
    run = (lambda: yardstick(model, batches)) if what == YARDSTICK else (lambda: compress(what, model, batches))
    began, cpu = time.perf_counter(), time.process_time()
    parts = run()
    row: Row = {"what": what, "samples": samples, "seconds": time.perf_counter() - began}
    row["cpu_seconds"] = time.process_time() - cpu
    row["parts"] = ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items())
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return row


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Every step in its own process; ratios to the mean of the two yardsticks."""
    rows: list[Row] = []
    for what in (YARDSTICK, *arguments.methods, YARDSTICK):
        given = {"step": what, "samples": arguments.samples, "seed": arguments.seed, "threads": arguments.threads}
        command = [sys.executable, "-m", "benchmarks.cost_resnet50"]
        command += [f"--{name}={value}" for name, value in given.items()]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    usual = (rows[0]["seconds"] + rows[-1]["seconds"]) / 2
    for row in rows:
        row["ratio"] = row["seconds"] / usual
        if row["what"] in LIMITS:
            row |= {"limit": LIMITS[row["what"]], "limit_gib": LIMIT_GIB}
    return rows


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, help=f"calibration images, {SAMPLES} by default")
    options.add_argument("--methods", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    options.add_argument("--step", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    arguments.samples = arguments.samples or (QUICK_SAMPLES if arguments.quick else SAMPLES)
    start(arguments)
    if arguments.step:
        print(json.dumps(step(arguments.step, arguments.samples, arguments.seed)))
        return
    report(measure(arguments), COLUMNS, "cost of compressing a ResNet-50", arguments.json)


if __name__ == "__main__":
    main()

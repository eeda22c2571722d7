"""Speed of a compressed network: ResNet-18 at half its MACs, batch 1, one thread, torch and onnxruntime.

    python -m benchmarks.speed [--quick] [--json FILE]

Weights are random, which does not affect speed. Ranks follow from the budget, in multiples of 16, because vector units
of current processors take 8 or 16 numbers.
"""

from __future__ import annotations

import torch

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from rankwise.inputs.torchvision_shim import import_torchvision

COLUMNS = (
    "network",
    "method",
    "engine",
    "keep",
    "macs_ratio",
    "params_ratio",
    "milliseconds",
    "speedup",
    "low",
    "high",
)
METHODS = {
    "svd": ("svd",),
    "tucker2": ("svd", "tucker2"),
    "spatial svd": ("svd", "spatial_svd"),
    "per layer": ("svd", "spatial_svd", "tucker2"),
}


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", default="resnet18", help="a torchvision classifier")
    options.add_argument("--keep", type=float, default=0.5)
    options.add_argument("--round-to", type=int, default=16, help="make ranks multiples of this")
    arguments = options.parse_args()
    arguments.threads = 1
    start(arguments)
    torchvision = import_torchvision()
    model = getattr(torchvision.models, arguments.network)(weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    sites = rw.find(model, example)
    dense = rw.evaluate.size(model, example)
    models = {"dense": model}
    for name, formats in METHODS.items():
        plan = rw.choose(
            model, sites, keep={"macs": arguments.keep}, metric="weight", formats=formats, round_to=arguments.round_to
        )
        models[name] = rw.factorise(model, plan, sites)
    rows: list[Row] = []
    for engine in ("onnxruntime", "torch"):
        rounds = 10 if arguments.quick else 40
        times = rw.evaluate.latency(models, example, engine=engine, threads=1, rounds=rounds)
        for name, small in models.items():
            after = rw.evaluate.size(small, example)
            row: Row = {"network": arguments.network, "method": name, "engine": engine}
            if name != "dense":
                row["keep"] = arguments.keep
            assert after.macs is not None
            assert dense.macs is not None
            row |= {"macs_ratio": after.macs / dense.macs, "params_ratio": after.params / dense.params}
            row |= {"milliseconds": 1000 * times[name].median, "speedup": times["dense"].median / times[name].median}
            row |= {"low": 1000 * times[name].low, "high": 1000 * times[name].high}
            rows.append(row)
    report(rows, COLUMNS, "latency at batch 1, one thread (interleaved medians, 95 % intervals)", arguments.json)


if __name__ == "__main__":
    main()

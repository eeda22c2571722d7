"""Speed of factorised layers compared with the limits of the machine: linear pairs and convolution chains.

    python -m benchmarks.kernels [--quick] [--json FILE]

Batch 1. Chains of the formats `svd`, `tucker2` and `spatial_svd` with random weights: in eager torch, with channels
last, with `torch.compile`, and from `rankwise.kernels.optimised`. All forms of a layer take turns. `achieved` is the
least time that the machine allows for the chain's MACs, input, weights and output, divided by the median; it is above 1
if weights stay in a cache. `slower` says how many times as long as the plain chain a form takes, and as the dense layer
the plain chain, if that is more than 5 %. On a GPU, if there is one, the same in half precision with fused kernels.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from rankwise.evaluate import Limits, machine_limits
from rankwise.formats import FORMATS
from rankwise.timing.clock import in_turns, synchronised

COLUMNS = (
    "layer",
    "format",
    "ranks",
    "device",
    "what",
    "macs",
    "microseconds",
    "achieved",
    "speedup",
    "slower",
    "forms",
)
LINEAR, QUICK_LINEAR = ((768, 3072), (3072, 768), (4096, 4096)), ((768, 3072),)
FRACTIONS = (16, 8, 4)
# Channels and side of the picture, as in the four stages of a ResNet.
PICTURES, QUICK_PICTURES = ((64, 56), (128, 28), (256, 14), (512, 7)), ((256, 14),)


def linear_cases(quick: bool) -> list[tuple[nn.Module, str, tuple[int, ...], tuple[int, ...]]]:
    """Dense layer, format, ranks and the shape of the input."""
    return [
        (nn.Linear(inputs, outputs), "svd", (min(inputs, outputs) // fraction,), (1, inputs))
        for inputs, outputs in (QUICK_LINEAR if quick else LINEAR)
        for fraction in FRACTIONS
    ]


def picture_cases(quick: bool) -> list[tuple[nn.Module, str, tuple[int, ...], tuple[int, ...]]]:
    """The same for 3 x 3 convolutions at half of their channels, and 1 x 1 convolutions."""
    cases: list[tuple[nn.Module, str, tuple[int, ...], tuple[int, ...]]] = []
    for channels, side in QUICK_PICTURES if quick else PICTURES:
        shape, half = (1, channels, side, side), channels // 2
        wide = nn.Conv2d(channels, channels, 3, padding=1)
        cases += [(wide, "tucker2", (half, half), shape), (wide, "spatial_svd", (half,), shape)]
        cases.append((nn.Conv2d(channels, 4 * channels, 1), "svd", (half,), shape))
    return cases


def measure(
    layer: nn.Module, format: str, ranks: tuple[int, ...], shape: tuple[int, ...], limits: Limits, rounds: int
) -> list[Row]:
    """All forms of one layer in turns."""
    weight = next(layer.parameters())
    x = torch.randn(shape, device=weight.device, dtype=weight.dtype)
    dense = nn.Sequential(layer).eval()
    chain = nn.Sequential(FORMATS[format].build(layer, ranks, True)).eval()
    modules: dict[str, tuple[nn.Module, Tensor]] = {"dense": (dense, x), "plain": (chain, x)}
    if x.dim() == 4:
        last = copy.deepcopy(chain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        modules["channels last"] = (last, x.to(memory_format=torch.channels_last))
    torch._dynamo.reset()
    modules["torch.compile"] = (torch.compile(copy.deepcopy(chain)), x)  # type: ignore[assignment]
    fast, chosen = rw.kernels.optimised(chain, x, threads=torch.get_num_threads(), rounds=rounds)
    modules["optimised"] = (fast, x)
    with torch.no_grad():
        runs = {name: _run(*each, weight.device) for name, each in modules.items()}
        seconds = {name: statistics.median(values) for name, values in in_turns(runs, rounds, 5).items()}
        output = dense(x)
    rows: list[Row] = []
    for name in modules:
        module = dense if name == "dense" else chain
        macs = rw.find(module, x).total_macs
        moved = x.nbytes + output.nbytes + sum(parameter.nbytes for parameter in module.parameters())
        row: Row = {"layer": _named(layer), "format": "dense" if name == "dense" else format, "what": name}
        row |= {"ranks": "" if name == "dense" else "x".join(map(str, ranks)), "device": weight.device.type}
        row |= {"macs": macs, "microseconds": 1e6 * seconds[name]}
        row |= {"achieved": limits.seconds(macs, moved) / seconds[name], "speedup": seconds["dense"] / seconds[name]}
        times = seconds[name] / seconds["dense" if name in ("dense", "plain") else "plain"]
        if times > 1.05:
            row["slower"] = times
        if name == "optimised":
            row["forms"] = ", ".join([chosen.layout, *dict.fromkeys(choice.form for choice in chosen.choices)])
        rows.append(row)
    return rows


def _run(module: nn.Module, x: Tensor, device: torch.device) -> Callable[[], object]:
    return synchronised(lambda: module(x), device)


def _named(layer: Any) -> str:
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features} -> {layer.out_features}"
    kernel = "x".join(map(str, layer.kernel_size))
    return f"{kernel}, {layer.in_channels} -> {layer.out_channels}"


def run(arguments: argparse.Namespace, device: str, dtype: torch.dtype) -> list[Row]:
    """All cases on one device."""
    limits = machine_limits(arguments.threads, device=device, dtype=dtype)
    print(f"{device}: at most {limits.macs_per_second / 1e9:.1f} GMAC/s, {limits.bytes_per_second / 1e9:.1f} GB/s")
    rounds = 11 if arguments.quick else 41
    rows: list[Row] = []
    for layer, *case in linear_cases(arguments.quick) + picture_cases(arguments.quick):
        rows += measure(layer.to(device, dtype), *case, limits, rounds)
    return rows


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    rows = run(arguments, "cpu", torch.float32)
    if torch.cuda.is_available():
        rows += run(arguments, "cuda", torch.float16)
    report(rows, COLUMNS, "forms of factorised layers at batch 1 (interleaved medians)", arguments.json)
    worse = [f"{row['layer']} {row['format']} {row['ranks']} {row['what']}" for row in rows if "slower" in row]
    print(f"{len(worse)} of {len(rows)} got slower: {'; '.join(worse) or 'none'}")


if __name__ == "__main__":
    main()

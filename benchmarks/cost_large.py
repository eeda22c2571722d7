"""Cost and errors of large layers: curve and fit of a linear layer, and a whole ViT-B/16.

    python -m benchmarks.cost_large [--quick] [--json FILE]

`Linear(n, n)` with random weights and inputs of several spectra: CPU seconds from moments to factors at a quarter of
the rank, the same in float64 by full decompositions, and the errors of the curve (the worst of all ranks that save
something) and of the factors, above the least. ViT-B/16 with random weights and 32 images of 224 x 224: CPU time in
forward passes of the dense network over the same images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from rankwise.inputs.torchvision_shim import import_torchvision
from rankwise.linalg.metric import Metric
from rankwise.linalg.symmetric import eigenvalues, eigh

LAYERS = ("network", "inputs", "curve_s", "fit_s", "together_s", "exact_s", "curve_excess", "fit_excess", "limit_s")
PASSES = ("network", "what", "cpu_seconds", "forwards", "limit")
LIMITS_S = {4096: 12.0}
LIMIT_FORWARDS = 4.0
IMAGES, BATCH = 32, 8
Result = TypeVar("Result")


def spectra(n: int) -> dict[str, Tensor]:
    """Variances of the inputs along their principal directions."""
    index = torch.arange(1, n + 1, dtype=torch.float64)
    outlier = torch.cat([torch.tensor([1e8], dtype=torch.float64), index[:-1] ** -0.5])
    return {"1/sqrt(i)": index**-0.5, "equal": torch.ones(n).double(), "1/i": 1 / index, "outlier": outlier}


def timed(verb: Callable[[], Result]) -> tuple[Result, float]:
    """The result and CPU seconds."""
    began = time.process_time()
    return verb(), time.process_time() - began


def moments(n: int, variances: Tensor, seed: int) -> rw.Moments:
    """Those of a million rows in random directions."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    second = turned * variances @ turned.mT
    mean = torch.zeros(1, n, dtype=torch.float64)
    return rw.Moments(count=10**6, mean_GD=mean, second_GDD=((second + second.mT) / 2)[None])


def exact(W_TD: Tensor, metric: Metric, rank: int) -> Tensor:
    """The least errors at all ranks, by what a curve and a fit in float64 take."""
    values = eigenvalues((W_TD @ metric.dense()) @ W_TD.mT)
    _, vectors = eigh((W_TD @ metric.dense()) @ W_TD.mT)
    vectors[:, :rank] @ (vectors[:, :rank].mT @ W_TD)
    return values.flip(0).cumsum(0).flip(0)


def layer(n: int, inputs: str, seed: int) -> Row:
    """One linear layer."""
    model = nn.Sequential(nn.Linear(n, n)).eval()
    sites = rw.find(model, torch.zeros(1, n))
    stats = rw.Statistics({"0": moments(n, spectra(n)[inputs], seed)}, sites=sites, samples=10**6)
    curves, curve_s = timed(lambda: rw.profile(model, stats, formats=["svd"]))
    plan = rw.choose(model, stats, curves=curves, keep={"macs": 0.5})
    small, fit_s = timed(lambda: rw.factorise(model, plan, stats))
    weight, metric = model[0].weight.detach().double(), stats.metric("0", "input").inputs[0]
    (rank,) = plan["0"].ranks
    least, exact_s = timed(lambda: exact(weight, metric, rank))
    first, last = (part.weight.detach().double() for part in small[0])
    missed = weight - last @ first
    row: Row = {"network": f"Linear({n}, {n})", "inputs": inputs, "curve_s": curve_s, "fit_s": fit_s}
    row |= {"together_s": curve_s + fit_s, "exact_s": exact_s}
    errors = {option.ranks[0]: option.error * float(least[0]) for option in curves["0"] if option.ranks}
    row["curve_excess"] = f"{max(abs(error / float(least[r]) - 1) for r, error in errors.items()):.0e}"
    row["fit_excess"] = f"{metric.energy(missed) / float(least[rank]) - 1:.0e}"
    if inputs != "outlier" and n in LIMITS_S:
        row["limit_s"] = LIMITS_S[n]
    return row


def vit(seed: int) -> list[Row]:
    """ViT-B/16 in forward passes."""
    model = import_torchvision().models.vit_b_16(weights=None).eval()
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    batches = list(images.split(BATCH))

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    forward()
    _, before = timed(forward)
    stats, collect_s = timed(lambda: rw.collect(model, batches))
    plan, choose_s = timed(lambda: rw.choose(model, stats, keep={"macs": 0.5}))
    _, one_shot_s = timed(lambda: rw.factorise(model, plan, stats))
    _, sequential_s = timed(lambda: rw.factorise(model, plan, stats, data=batches))
    _, after = timed(forward)
    seconds = {
        "forward": (before + after) / 2,
        "collect": collect_s,
        "choose": choose_s,
        "one-shot": one_shot_s,
        "collect, choose, one-shot": collect_s + choose_s + one_shot_s,
        "sequential": sequential_s,
    }
    rows: list[Row] = []
    for what, cpu_s in seconds.items():
        row: Row = {"network": "vit_b_16", "what": what, "cpu_seconds": cpu_s, "forwards": cpu_s / seconds["forward"]}
        if what == "collect, choose, one-shot":
            row["limit"] = LIMIT_FORWARDS
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    layer(256, "1/sqrt(i)", arguments.seed)  # loads what the first layer would load
    rows = [layer(n, inputs, arguments.seed) for n in (1024, 2048) for inputs in spectra(n)]
    rows += (
        [] if arguments.quick else [layer(4096, inputs, arguments.seed) for inputs in ("1/sqrt(i)", "1/i", "outlier")]
    )
    report(rows, LAYERS, "linear layers from moments to factors (CPU seconds; errors above the least, relatively)")
    passes = [] if arguments.quick else vit(arguments.seed)
    report(passes, PASSES, "ViT-B/16 with 32 images (CPU seconds)")
    if arguments.json is not None:
        report([*rows, *passes], (*LAYERS, *PASSES[1:]), "all", arguments.json)


if __name__ == "__main__":
    main()

"""What every format makes of a layer at equal cost, beside tensorly at equal ranks and the published Tucker-2 fit.

    python -m benchmarks.formats [--quick] [--layers resnet20 512x512 ...] [--tables formats peers ...] [--json FILE]

Layers of trained networks with the statistics of real images, and synthetic ones up to 512 x 512 x 3 x 3. Errors are
relative squared errors in per cent: `sigma` in the metric of the inputs, `weight` in the Frobenius norm. `worse_by` is
by how many per cent our squared error, in the metric of the fit, is above the other one. Times on one thread are those
of the processor.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rankwise as rw
from benchmarks import formats_peers, formats_reference
from benchmarks.common import Row, parser, report, start
from benchmarks.formats_layers import QUICK_SITES, QUICK_SIZES, SITES, SIZES, Layer, is_wanted, real, synthetic, terms
from rankwise.formats import FORMATS, Factors, Format, Ranks
from rankwise.formats.multilinear import Multilinear, Shape
from rankwise.linalg import tucker2
from rankwise.linalg.metric import Identity

METRICS = ("input", "weight")
KEEP = 0.5
# Ranks tried between two rungs of a ladder, to come nearer to the budget.
BETWEEN = 64
# All ladders of a format are fitted, and the best is taken, for kernels of at most this many weights; above, and in a
# quick run, the one that comes nearest to the budget.
ALL_LADDERS = 40_000
# Where both together take less than this many seconds, times are medians of three; those of table "speed" always are.
REPEATED = 3.0
# Inputs up to which the published algorithm is run, its sweeps and ours, and the budgets.
REFERENCE_INPUTS, REFERENCE_SWEEPS, OUR_SWEEPS, REFERENCE_KEEPS = 1152, 100, 10, (0.5, 0.25)
# Outputs and channels, and terms to fit; the planted kernel has twice as many. tensorly's sweeps.
SPEED, QUICK_SPEED, SPEED_SWEEPS = (512, 256), (16, 8), 20

COMMON = ("network", "layer", "format", "ranks", "metric")
COLUMNS = {
    "formats": (*COMMON, "macs_ratio", "params_ratio", "sigma", "weight", "seconds"),
    "peers": (
        *COMMON,
        "sigma",
        "peer_sigma",
        "weight",
        "peer_weight",
        "worse_by",
        "seconds",
        "peer_seconds",
        "speedup",
    ),
    "reference": (
        *("network", "layer", "ranks", "sigma", "default_sigma", "reference_sigma"),
        *("worse_by", "default_worse_by", "seconds", "reference_seconds"),
    ),
    "speed": (
        *("network", "layer", "format", "ranks", "weight", "peer_weight"),
        *("seconds", "peer_seconds", "speedup"),
    ),
}
TITLES = {
    "formats": f"every format at {KEEP} of the MACs",
    "peers": "ours and tensorly at the same ranks",
    "reference": f"Tucker-2: ours with {OUR_SWEEPS} sweeps and by default, the paper's with {REFERENCE_SWEEPS}",
    "speed": f"canonical polyadic form of a planted kernel, tensorly with {SPEED_SWEEPS} sweeps",
}


def clock() -> float:
    """Seconds of the processor on one thread, which other programs hardly change; else those of the wall clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def candidates(format: Format, layer: Layer, keep: float, metric: str) -> list[Ranks]:
    """Of each ladder of a format the ranks whose MACs are nearest to the budget, and not above it.

    Tucker-2 has no ladders but a curve over all its ranks: those with the smallest predicted error within the budget.
    """
    site, budget = layer.site, keep * layer.site.macs

    def macs(ranks: Ranks) -> int:
        return format.cost(site, ranks, site.has_bias).macs

    if isinstance(format, Multilinear):
        ladders = format.ladders(Shape.of_site(site), 1)
    elif format.name == "tucker2":
        curve = format.curve(site, layer.weight, [layer.metric(metric)], 1)
        return [min((error, ranks) for ranks, error in curve if macs(ranks) <= budget)[1]]
    else:
        ladders = [[(rank,) for rank in range(1, format.limits(site)[0] + 1)]]
    found: dict[Ranks, None] = {}
    for ladder in ladders:
        within = [ranks for ranks in ladder if macs(ranks) <= budget]
        if not within:
            continue
        best = max(within, key=macs)
        above = [ranks for ranks in ladder[ladder.index(best) + 1 :] if macs(ranks) > budget]
        if above:
            shares = (number / BETWEEN for number in range(BETWEEN))
            between = (
                tuple(round(a + share * (b - a)) for a, b in zip(best, above[0], strict=True)) for share in shares
            )
            best = max((ranks for ranks in between if macs(ranks) <= budget), key=macs)
        found[best] = None
    return sorted(found, key=macs, reverse=True)


def states(format: Format, layer: Layer, ranks: Ranks) -> int:
    """The most bond states that one factor has: what the memory of a fit grows with, squared."""
    if not isinstance(format, Multilinear):
        return 1
    network = format.network(Shape.of_site(layer.site), ranks)
    modes = set(network.outputs + network.channels + network.spatial)
    return max(network.count("".join(x for x in letters if x not in modes)) for letters in network.factors)


def measure_formats(
    layer: Layer, names: Sequence[str], quick: bool, most_states: int
) -> tuple[list[Row], dict[tuple[str, str], Factors]]:
    """Rows of one layer, and the best fit of each format in each metric."""
    rows: list[Row] = []
    fits: dict[tuple[str, str], Factors] = {}
    for name in names:
        format = FORMATS[name]
        if format.refuses(layer.site):
            continue
        for metric in METRICS:
            tried: list[tuple[float, float, Factors]] = []
            possible = candidates(format, layer, KEEP, metric)
            if quick or layer.weight.numel() > ALL_LADDERS:
                possible = possible[:1]
            for ranks in possible:
                if states(format, layer, ranks) > most_states:
                    print(f"not measured: {layer.network} {layer.name} {name} {ranks}, more states than --states")
                    continue
                begin = clock()
                factors = format.fit(layer.site, layer.weight, [layer.metric(metric)], ranks)
                tried.append((factors.error, clock() - begin, factors))
            if not tried:
                continue
            _, seconds, best = min(tried, key=lambda item: item[0])
            cost = format.cost(layer.site, best.ranks, layer.site.has_bias)
            fits[name, metric] = best
            row = _about(layer, name, best.ranks, metric)
            row |= {"macs_ratio": cost.macs / layer.site.macs, "params_ratio": cost.params / layer.site.params}
            row |= _errors(layer, best.weight) | {"seconds": seconds, "ladders": len(tried)}
            rows.append(row)
            _print(row)
    return rows, fits


def measure_peers(layer: Layer, fits: dict[tuple[str, str], Factors], quick: bool, seed: int) -> list[Row]:
    """Rows of one layer: our fits again, with the times of both run in turn."""
    rows: list[Row] = []
    sweeps = formats_peers.sweeps_for(layer.weight)
    for (name, metric), known in fits.items():
        if name not in formats_peers.PEERS:
            continue
        ours = partial(FORMATS[name].fit, layer.site, layer.weight, [layer.metric(metric)], known.ranks)
        theirs = formats_peers.decomposer(name, layer.weight, known.ranks, sweeps, 1e-8, seed)
        try:
            found, seconds, rounds = in_turn(ours, theirs, REPEATED * (not quick))
        except RuntimeError as error:  # a singular system of its own
            print(f"tensorly failed: {layer.name} {name} {known.ranks}: {error}")
            continue
        row = _about(layer, name, known.ranks, metric) | _errors(layer, known.weight)
        row |= _errors(layer, formats_peers.dense(name, layer.weight, found[1]), "peer_")
        key = "sigma" if metric == "input" else "weight"
        if row["peer_" + key] > 1e-9:
            row["worse_by"] = 100 * (row[key] / row["peer_" + key] - 1)
        row |= {"peer": formats_peers.PEERS[name], "seconds": seconds[0], "peer_seconds": seconds[1]}
        row |= {"speedup": seconds[1] / seconds[0], "rounds": rounds}
        if name in ("cp", "cp3"):
            row["peer_sweeps"] = sweeps
        rows.append(row)
        _print(row)
    return rows


def measure_reference(layer: Layer) -> list[Row]:
    """Rows of one layer beside the published algorithm."""
    format, rows = FORMATS["tucker2"], list[Row]()
    if format.refuses(layer.site) or layer.site.in_features > REFERENCE_INPUTS:
        return rows
    W_TCQ = layer.weight.flatten(2)
    total, sigma_DD = layer.input.energy(W_TCQ.flatten(1)), layer.input.dense()
    for keep in REFERENCE_KEEPS:
        for R, S in candidates(format, layer, keep, "input"):
            begin = clock()
            fit = tucker2.fit(W_TCQ, layer.input, R, S, sweeps=OUR_SWEEPS, tolerance=1e-12)
            seconds = clock() - begin
            default = tucker2.fit(W_TCQ, layer.input, R, S).error / total
            begin = clock()
            theirs, history = formats_reference.tucker2(W_TCQ, sigma_DD, R, S, REFERENCE_SWEEPS)
            reference_seconds = clock() - begin
            row: Row = {"network": layer.network, "layer": layer.name, "ranks": f"{R},{S}"}
            row |= {"sigma": 100 * fit.error / total, "default_sigma": 100 * default}
            row |= {"reference_sigma": 100 * theirs, "reference_sweep_10": 100 * history[9]}
            row["worse_by"] = 100 * (fit.error / total / theirs - 1)
            row["default_worse_by"] = 100 * (default / theirs - 1)
            row |= {"seconds": seconds, "reference_seconds": reference_seconds}
            rows.append(row)
            _print(row)
    return rows


def measure_speed(size: int, rank: int, repeated: float, seed: int) -> list[Row]:
    """Rows of the canonical polyadic forms of one planted kernel, in the weight metric."""
    weight = terms(size, 2 * rank, torch.Generator().manual_seed(seed))
    site = rw.find(nn.Sequential(nn.Conv2d(size, size, 3, padding=1)), torch.zeros(1, size, 4, 4))["0"]
    rows, metric = list[Row](), Identity(site.in_features)
    layer = Layer(network="planted", name=f"{size}x{size}x3x3", site=site, weight=weight, input=metric)
    for name in ("cp3", "cp"):
        theirs = formats_peers.decomposer(name, weight, (rank,), SPEED_SWEEPS, 0.0, seed)
        ours = partial(FORMATS[name].fit, site, weight, [metric], (rank,))
        (fit, found), seconds, rounds = in_turn(ours, theirs, repeated)
        row = _about(layer, name, (rank,), "weight") | {"weight": layer.error("weight", fit.weight)}
        row["peer_weight"] = layer.error("weight", formats_peers.dense(name, weight, found))
        row |= {"seconds": seconds[0], "peer_seconds": seconds[1], "rounds": rounds, "peer_sweeps": SPEED_SWEEPS}
        if row["weight"] <= row["peer_weight"]:  # a faster fit that is worse is not faster
            row["speedup"] = seconds[1] / seconds[0]
        rows.append(row)
        _print(row)
    return rows


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], repeated: float) -> tuple[list[Any], list[float], int]:
    """What both give, their seconds, and how many rounds those are the medians of."""
    results: list[Any] = []
    times: list[list[float]] = [[], []]
    while len(times[1]) < 3:
        results = []
        for run, seconds in zip((ours, theirs), times, strict=True):
            begin = clock()
            results.append(run())
            seconds.append(clock() - begin)
        if times[0][0] + times[1][0] >= repeated:
            break
    return results, [statistics.median(seconds) for seconds in times], len(times[1])


def _about(layer: Layer, format: str, ranks: Ranks, metric: str) -> Row:
    about: Row = {"network": layer.network, "layer": layer.name, "shape": "x".join(map(str, layer.site.weight_shape))}
    return about | {"format": format, "ranks": ",".join(map(str, ranks)), "metric": metric}


def _errors(layer: Layer, replacement: torch.Tensor, prefix: str = "") -> Row:
    sigma, weight = (layer.error(metric, replacement) for metric in METRICS)
    return {f"{prefix}sigma": sigma, f"{prefix}weight": weight}


def _print(row: Row) -> None:
    print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)


def _write(rows: dict[str, list[Row]], seed: int, path: Path | None) -> None:
    if path is not None:
        flat = [{"table": table, **row, "seed": seed} for table, found in rows.items() for row in found]
        path.write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--layers", nargs="+", default=[], help="only layers whose name holds one of these words")
    options.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    options.add_argument("--tables", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    options.add_argument("--states", type=int, default=2048, help="leave out fits with more bond states in a factor")
    arguments = options.parse_args()
    start(arguments)
    quick, seed = arguments.quick, arguments.seed
    rows: dict[str, list[Row]] = {table: [] for table in arguments.tables}
    if not formats_peers.available():
        print("tensorly is not installed (pip install -e .[bench]): no comparison with it")
        rows.pop("peers", None)
        rows.pop("speed", None)
    layers: Iterator[Layer] = chain(
        real(QUICK_SITES if quick else SITES, arguments.layers, quick, seed),
        synthetic(QUICK_SIZES if quick else SIZES, arguments.layers, seed),
    )
    for layer in layers:
        if "formats" in rows or "peers" in rows:
            needed = [name for name in arguments.formats if "formats" in rows or name in formats_peers.PEERS]
            found, fits = measure_formats(layer, needed, quick, arguments.states)
            if "formats" in rows:
                rows["formats"] += found
            if "peers" in rows:
                rows["peers"] += measure_peers(layer, fits, quick, seed)
        if "reference" in rows:
            rows["reference"] += measure_reference(layer)
        _write(rows, seed, arguments.json)
    size, rank = QUICK_SPEED if quick else SPEED
    if "speed" in rows and is_wanted("planted", f"{size}x{size}x3x3", arguments.layers):
        rows["speed"] += measure_speed(size, rank, 0.0 if quick else math.inf, seed)
    for table, found in rows.items():
        report(found, COLUMNS[table], TITLES[table])
    _write(rows, seed, arguments.json)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

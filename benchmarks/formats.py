"""Compare all formats on a layer at equal cost, with tensorly at equal ranks and with the published Tucker-2 fit.

    python -m benchmarks.formats [--quick] [--layers resnet20 512x512 ...] [--tables formats peers ...] [--json FILE]
    python -m benchmarks.formats --tables forms --layers resnet20.layer1 resnet20.layer2.0.conv2

Layers of trained networks with the statistics of real images, and synthetic ones up to 512 x 512 x 3 x 3. Errors are
relative squared errors in per cent: `sigma` in the metric of the inputs, `weight` in the Frobenius norm. `worse_by`
says by how many per cent our squared error, in the metric of the fit, is above the other one. Times on one thread are
processor times; `equal_seconds` is the time we need to reach the other error. Plain alternating least squares is run on
small layers, and fits of random weights of each form must recover them. The last table lists the requirements for our
fits, and whether they are met. `forms` has formats with settings beside the plain ones; `--formats` takes them too
("stt:slices=4").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch

from benchmarks import formats_laws, formats_peers, formats_summary, formats_versus
from benchmarks.common import Row, parser, report, start
from benchmarks.formats_layers import (
    QUICK_SITES,
    QUICK_SIZES,
    SITES,
    SIZES,
    Layer,
    forms,
    is_wanted,
    real,
    synthetic,
)
from benchmarks.formats_versus import (
    METRICS,
    OUR_SWEEPS,
    REFERENCE_INPUTS,
    REFERENCE_SWEEPS,
    SPEED_SWEEPS,
    about,
    clock,
    errors,
    show,
)
from rankwise.formats import FORMATS, Factors, Format, Ranks, get_format
from rankwise.formats.multilinear import Multilinear
from rankwise.formats.shape import Shape

KEEP = 0.5
# Ranks tried between two rungs of a ladder, to come nearer to the budget.
BETWEEN = 64
# All ladders of a format are fitted, and the best is taken, for kernels of at most this many weights; above, and in a
# quick run, the one that comes nearest to the budget.
ALL_LADDERS = 40_000
# Budgets at which the published algorithm is run.
REFERENCE_KEEPS = (0.5, 0.25)
# Random weights of each form.
PLANTED = 20
# Outputs and channels, and terms to fit; the planted kernel has twice as many.
SPEED, QUICK_SPEED = (512, 256), (16, 8)

COMMON = ("network", "layer", "format", "ranks", "metric")
COLUMNS = {
    "formats": (*COMMON, "macs_ratio", "params_ratio", "sigma", "weight", "seconds"),
    "forms": (*COMMON, "macs_ratio", "params_ratio", "sigma", "weight", "seconds"),
    "peers": (
        *(*COMMON, "sigma", "peer_sigma", "weight", "peer_weight", "worse_by"),
        *("seconds", "peer_seconds", "speedup", "equal_seconds", "equal_speedup"),
    ),
    "reference": (
        *("network", "layer", "ranks", "sigma", "default_sigma", "reference_sigma"),
        *("worse_by", "default_worse_by", "seconds", "reference_seconds", "equal_sweeps", "equal_seconds"),
    ),
    "plain": (*COMMON, "error", "plain_error", "worse_by", "plain_seconds"),
    "planted": ("layer", "format", "ranks", "metric", "recovered", "worst", "seconds"),
    "speed": (
        *("network", "layer", "format", "ranks", "weight", "peer_weight"),
        *("seconds", "peer_seconds", "speedup", "equal_seconds", "equal_speedup"),
    ),
}
TITLES = {
    "formats": f"every format at {KEEP} of the MACs",
    "forms": f"formats with settings and without at {KEEP} of the MACs",
    "peers": "ours and tensorly at the same ranks",
    "reference": f"Tucker-2: ours with {OUR_SWEEPS} sweeps and by default, the paper's with {REFERENCE_SWEEPS}",
    "plain": "ours and plain ALS, best of three starts, at the same ranks",
    "planted": "random weights of a form that a fit recovers",
    "speed": f"canonical polyadic form of a planted kernel, tensorly with {SPEED_SWEEPS} sweeps",
}


def candidates(format: Format, layer: Layer, keep: float, metric: str) -> list[Ranks]:
    """Of each ladder of a format the ranks whose MACs are nearest to the budget, and not above it.

    Tucker-2 and sparse low rank have no ladders but curves over all their ranks: of these the smallest predicted error.
    """
    site, budget = layer.site, keep * layer.site.macs

    def macs(ranks: Ranks) -> int:
        return format.cost(site, ranks, site.has_bias).macs

    if isinstance(format, Multilinear):
        ladders = format.ladders(Shape.of_site(site), 1)
    elif len(format.limits(site)) > 1:
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


def measure_formats(
    layer: Layer, names: Sequence[str], quick: bool, most_states: int
) -> tuple[list[Row], dict[tuple[str, str], Factors]]:
    """Rows of one layer, and the best fit of each format in each metric."""
    rows: list[Row] = []
    fits: dict[tuple[str, str], Factors] = {}
    for name in names:
        format = get_format(name)
        if format.refuses(layer.site):
            continue
        for metric in METRICS:
            tried: list[tuple[float, float, Factors]] = []
            possible = candidates(format, layer, KEEP, metric)
            if quick or layer.weight.numel() > ALL_LADDERS:
                possible = possible[:1]
            for ranks in possible:
                if isinstance(format, Multilinear) and format.states(layer.site, ranks) > most_states:
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
            row = about(layer, name, best.ranks, metric)
            row |= {"macs_ratio": cost.macs / layer.site.macs, "params_ratio": cost.params / layer.site.params}
            row |= errors(layer, best.weight) | {"seconds": seconds, "ladders": len(tried)}
            rows.append(row)
            show(row)
    return rows, fits


def measure_reference(layer: Layer) -> list[Row]:
    """Rows of one layer compared with the published algorithm, where that can be run."""
    format = FORMATS["tucker2"]
    if format.refuses(layer.site) or layer.site.in_features > REFERENCE_INPUTS:
        return []
    ranks = [ranks for keep in REFERENCE_KEEPS for ranks in candidates(format, layer, keep, "input")]
    return formats_versus.reference(layer, ranks)


def _write(rows: dict[str, list[Row]], seed: int, path: Path | None) -> None:
    if path is not None:
        flat = [{"table": table, **row, "seed": seed} for table, found in rows.items() for row in found]
        path.write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--layers", nargs="+", default=[], help="only layers whose name contains one of these words")
    options.add_argument("--formats", nargs="+", default=list(FORMATS), type=lambda name: get_format(name).name)
    tables = [table for table in COLUMNS if table != "forms"]
    options.add_argument("--tables", nargs="+", default=tables, choices=list(COLUMNS))
    options.add_argument("--states", type=int, default=2048, help="skip fits with more bond states in a factor")
    arguments = options.parse_args()
    start(arguments)
    quick, seed = arguments.quick, arguments.seed
    rows: dict[str, list[Row]] = {table: [] for table in arguments.tables}
    if not formats_peers.available():
        print("no comparison with tensorly: it is not installed (pip install -e .[bench])")
        rows.pop("peers", None)
        rows.pop("speed", None)
    layers: Iterator[Layer] = chain(
        real(QUICK_SITES if quick else SITES, arguments.layers, quick, seed),
        synthetic(QUICK_SIZES if quick else SIZES, arguments.layers, seed),
    )
    for layer in layers:
        if rows.keys() & {"formats", "peers", "plain"}:
            every = rows.keys() & {"formats", "plain"}
            needed = [name for name in arguments.formats if every or name in formats_peers.PEERS]
            found, fits = measure_formats(layer, needed, quick, arguments.states)
            if "formats" in rows:
                rows["formats"] += found
            if "plain" in rows:
                rows["plain"] += formats_laws.plain(layer, fits)
            if "peers" in rows:
                rows["peers"] += formats_versus.peers(layer, fits, quick, seed)
        if "forms" in rows:
            rows["forms"] += measure_formats(layer, forms(layer), quick, arguments.states)[0]
        if "reference" in rows:
            rows["reference"] += measure_reference(layer)
        _write(rows, seed, arguments.json)
    size, rank = QUICK_SPEED if quick else SPEED
    if "speed" in rows and is_wanted("planted", f"{size}x{size}x3x3", arguments.layers):
        rows["speed"] += formats_versus.speed(size, rank, 1 if quick else 3, seed)
    if "planted" in rows and is_wanted("planted", "weights", arguments.layers):
        rows["planted"] += formats_laws.planted(arguments.formats, PLANTED // 10 if quick else PLANTED)
    for table, found in rows.items():
        report(found, COLUMNS[table], TITLES[table])
    rows["summary"] = formats_summary.summary(rows)
    report(rows["summary"], formats_summary.COLUMNS, "what is asked of the fits")
    _write(rows, seed, arguments.json)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

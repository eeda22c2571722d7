"""Compare sparse low rank with truncated SVD and pruning on layers of trained networks: accuracy, storage, latency.

    python -m benchmarks.slr [--tables lenet300 lenet5 vgg mobilenet_v2 tiny_darknet criterion] [--cache DIR]
    python -m benchmarks.slr --tables speed --threads 1
    python -m benchmarks.slr --tables lenet300 lenet5 vgg mobilenet_v2 --latency --threads 1

Only the named layers are replaced, without training. Parameters are counted in the layers' factors, without biases;
`whole` counts the whole network. Pruning keeps as many non-zeros as sparse low rank has at the same point of the grid.
`share` is the least number of parameters with which a method reaches the accuracy of an SVD minus 0.2 points, relative
to the least with which any SVD of the same metric reaches that accuracy; `strict` is the same without the 0.2 points.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.slr_cases import CASES, Case
from benchmarks.slr_layer import criterion, speed
from rankwise.evaluate import sparse_bytes, storage
from rankwise.formats import Format, Ranks, get_format
from rankwise.formats.slr import Importance, SparseLowRank
from rankwise.formats.slr_levels import paper_ranks
from rankwise.importance import by_activation, by_gradient, by_weight

FRONTIER = ("network", "method", "metric", "k", "sr", "rr", "params_ratio", "bytes_ratio", "whole", "top1")
SHARES = ("network", "method", "metric", "top1", "params_ratio", "share", "strict")
SPEED = ("method", "engine", "batch", "k", "params_ratio", "milliseconds", "against_svd")
CRITERION = ("network", "layer", "k", "sr", "rr", "samples", "order", "inputs", "outputs", "seconds")
TIMES = ("network", "method", "metric", "params_ratio", "top1", "engine", "milliseconds")
WITHIN = 0.2

Layers = Mapping[str, tuple[str, Ranks]]


def measured(
    case: Case, method: str, metric: str, layers: Layers, formats: Mapping[str, Format] | None = None, **at: float
) -> Row:
    """One way to replace the layers: what is stored, and the accuracy."""
    plan = case.plan(layers, metric)
    small = case.built(plan, formats)
    left = sum(case.weight(site).numel() for site in case.names if site not in layers)
    params = left + sum(
        get_format(n).cost(case.sites[site], ranks, False).params for site, (n, ranks) in layers.items()
    )
    stored = storage(small).layers
    chains = {layer.name: small.get_submodule(layer.name) for layer in stored}
    biases = sum(case.sites[name].out_features for name, chain in chains.items() if chain.bias is not None)
    return {
        "network": case.network,
        "method": method,
        "metric": metric,
        **at,
        "layers": {site: [name, list(ranks)] for site, (name, ranks) in layers.items()},
        "params": params,
        "nonzeros": left + sum(layer.nonzeros for layer in stored) - biases,
        "params_ratio": params / case.weights(),
        "bytes_ratio": (left - biases + sum(layer.bytes for layer in stored) / 4) / case.weights(),
        "whole": case.whole(plan.planned["params"]),
        "top1": case.accuracy(small),
    }


def pruned(case: Case, params: Mapping[str, int]) -> Row:
    """Magnitude pruning: only the largest entries of every layer's weight, stored as compressed sparse rows."""
    trial, stored = copy.deepcopy(case.model), 0
    for name, count in params.items():
        weight = trial.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.copy_(magnitude(weight, count))
        stored += sparse_bytes(weight.flatten(1))
    kept = sum(params.values())
    return {
        "network": case.network,
        "method": "pruning",
        "params": kept,
        "params_ratio": kept / case.weights(),
        "bytes_ratio": stored / (4 * case.weights()),
        "whole": case.whole(rw.evaluate.size(trial).params - case.weights() + kept),
        "top1": case.accuracy(trial),
    }


def magnitude(weight: Tensor, count: int) -> Tensor:
    """The weight with only its largest entries."""
    kept = torch.zeros(weight.numel(), dtype=weight.dtype)
    kept[weight.abs().flatten().argsort(descending=True, stable=True)[:count]] = 1
    return weight * kept.reshape(weight.shape)


def points(case: Case) -> Iterator[Row]:
    """Every method at every point of its grid."""
    dense = {"network": case.network, "method": "dense", "params_ratio": 1.0, "whole": 1.0}
    yield {**dense, "top1": case.accuracy(case.model)}
    for metric, k in product(("weight", "input"), case.ks):
        yield measured(case, "svd", metric, {name: ("svd", (case.rank(name, k),)) for name in case.names}, k=k)
    for k, sr, rr in product(case.grid, *case.rates):
        yield from published(case, k, sr, rr)
    yield from chosen(case)


def published(case: Case, k: float, sr: float, rr: float) -> Iterator[Row]:
    """One point of the paper's grid: its three criteria, its form fitted, and pruning with as many numbers."""
    layers: dict[str, tuple[str, Ranks]] = {}
    for name, site in case.sites.items():
        channels, outputs = site.weight_shape[1], site.out_features
        ranks = paper_ranks(case.rank(name, k), sr, rr, channels, outputs)
        if ranks[1] > min(ranks[2:]):
            return
        layers[name] = "slr", ranks
    criteria: dict[str, dict[str, Importance]] = {"slr-w": {}, "slr-a": {}, "slr-c": {}}
    for name, site in case.sites.items():
        rank, further = layers[name][1][:2]
        criteria["slr-w"][name] = by_weight(case.model, site)
        criteria["slr-a"][name] = by_activation(case.model, case.stats, site)
        criteria["slr-c"][name] = by_gradient(case.model, site, case.data(), (rank, further))
    at = {"k": k, "sr": sr, "rr": rr}
    for method, given in criteria.items():
        yield measured(case, method, "weight", layers, {"slr": SparseLowRank(given, refit=False)}, **at)
    fitted = {"slr": SparseLowRank(criteria["slr-a"])}
    for metric in ("weight", "input"):
        yield measured(case, "slr-a, refit", metric, layers, fitted, **at)
    cost = get_format("slr").cost
    params = {name: cost(case.sites[name], ranks, False).params for name, (_, ranks) in layers.items()}
    yield pruned(case, params)


def chosen(case: Case) -> Iterator[Row]:
    """The knapsack's choice from the curve of each format, for several numbers of parameters."""
    most = rw.evaluate.size(case.model).params - case.weights()
    for metric, format in product(("weight", "input"), ("svd", "slr", "slr3")):
        if format == "svd" and len(case.names) == 1:  # one layer and one format leave no choice
            continue
        curves = rw.profile(case.model, case.stats, formats=format, metric=metric, round_to=1, only=case.names)
        seen = []
        for budget in case.budgets():
            plan = rw.choose(
                case.model,
                case.stats,
                keep={"params": most + budget},
                include=case.names,
                curves=curves,
                metric=metric,
            )
            layers = {row.site: (row.format, row.ranks) for row in plan.factorised}
            if layers and layers not in seen:
                seen.append(layers)
                yield measured(case, "svd" if format == "svd" else f"{format}, by curve", metric, layers)


def shares(rows: Iterable[Row], below: float) -> list[Row]:
    """The point of every method with the smallest share of the SVD's parameters at equal accuracy.

    Args:
        rows: measured rows, the dense network first.
        below: points below the dense accuracy down to which accuracies are compared.
    """
    rows = list(rows)
    lowest = rows[0]["top1"] - below
    result = []
    for method, metric in dict.fromkeys((row["method"], row.get("metric")) for row in rows[1:]):
        svd = [row for row in rows if row["method"] == "svd" and row["metric"] == (metric or "weight")]
        own = [row for row in rows if (row["method"], row.get("metric")) == (method, metric)]
        best: Row = {}
        for wanted in sorted({row["top1"] for row in svd if row["top1"] >= lowest}):
            reference = min(row["params_ratio"] for row in svd if row["top1"] >= wanted)
            for name, within in (("share", WITHIN), ("strict", 0.0)):
                enough = [row for row in own if row["top1"] >= wanted - within]
                if not enough:
                    continue
                least = min(enough, key=lambda row: row["params_ratio"])
                share = least["params_ratio"] / reference
                if share < best.get(name, float("inf")):
                    best[name] = share
                    if name == "strict":
                        kept = ("top1", "params_ratio", "layers")
                        best |= {key: least[key] for key in kept if key in least}
        found: Row = {"network": rows[0]["network"], "method": method, **best}
        result.append(found if metric is None else {**found, "metric": metric})
    return result


def frontier(rows: Iterable[Row]) -> list[Row]:
    """The points that no other point of the same network beats in both parameters and accuracy."""
    rows = sorted(rows, key=lambda row: (row["params_ratio"], -row["top1"]))
    kept: list[Row] = []
    for row in rows:
        if not kept or row["top1"] > kept[-1]["top1"]:
            kept.append(row)
    return kept


def latencies(case: Case, rows: Iterable[Row]) -> Iterator[Row]:
    """Milliseconds for one sample of the networks in the table of shares, side by side."""
    models: dict[str, nn.Module] = {"dense": case.model}
    shown: dict[str, Row] = {"dense": {"network": case.network, "method": "dense"}}
    for row in rows:
        if "layers" in row:
            name = f"{row['method']} {row['metric']}"
            layers = {site: (format, tuple(ranks)) for site, (format, ranks) in row["layers"].items()}
            models[name] = case.built(case.plan(layers, row["metric"]))
            shown[name] = {key: row[key] for key in ("network", "method", "metric", "params_ratio", "top1")}
    for engine in ("torch", "onnxruntime"):
        times = rw.evaluate.latency(models, case.inputs[:1], engine=engine, threads=1, rounds=30)
        for name, row in shown.items():
            yield {**row, "engine": engine, "milliseconds": 1000 * times[name].median}


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    tables = [*CASES, "criterion", "speed"]
    options.add_argument("--tables", nargs="+", default=[*CASES, "criterion"], choices=tables)
    options.add_argument("--cache", type=Path, help="keep trained networks here")
    options.add_argument("--latency", action="store_true", help="also time the points in the table of shares")
    arguments = options.parse_args()
    start(arguments)
    rows: list[Row] = []

    def shown(table: str, found: Iterable[Row], columns: tuple[str, ...], title: str) -> list[Row]:
        made = [{"table": table, **row, "seed": arguments.seed} for row in found]
        report(made, columns, title)
        kept(made)
        return made

    def kept(made: list[Row]) -> None:
        rows.extend(made)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    for name in [name for name in CASES if name in arguments.tables]:
        case = CASES[name](networks(), arguments.quick, arguments.cache)
        found = list(points(case))
        kept([{"table": "points", **row, "seed": arguments.seed} for row in found])
        report(frontier(found), FRONTIER, f"{name}: what nothing else beats, dense {found[0]['top1']:.2f}")
        best = shown("shares", shares(found, case.lowest), SHARES, f"{name}: in parts of the SVD's parameters")
        if arguments.latency:
            shown("latency", latencies(case, best), TIMES, f"{name}: one sample, {arguments.threads} threads")
    if "criterion" in arguments.tables:
        title = "cost to first and second order against the exact one, Spearman; seconds of processor time"
        shown("criterion", criterion(networks(), arguments.quick, arguments.cache), CRITERION, title)
    if "speed" in arguments.tables:
        size = 1024 if arguments.quick else 4096
        shown("speed", speed(size, arguments.quick), SPEED, f"{size} x {size} at sr = rr = 0.5, one thread")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

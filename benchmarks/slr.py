"""Sparse low rank against truncated SVD and pruning, on one layer of a trained network: accuracy, parameters, latency.

    python -m benchmarks.slr [--tables lenet300 mobilenet_v2 speed criterion] [--quick] [--seed N] [--json FILE]

Only one layer is replaced, without training. Parameters are those of the layer's factors, without its bias; pruning
keeps as many non-zeros as sparse low rank has at the same place of the grid. `share` is the least parameters of a
method with an accuracy of at least that of the SVD less 0.2 points, in parts of the least parameters with which any SVD
of the same metric reaches that accuracy; `strict` is the same without the 0.2 points.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS
from rankwise.formats import Format, get_format
from rankwise.formats.slr import Importance, SparseLowRank, Staircase
from rankwise.formats.slr_levels import paper_ranks
from rankwise.formats.weights import site_bias, site_weight
from rankwise.importance import by_activation, by_cost, by_gradient, by_weight
from rankwise.linalg.metric import Metric
from rankwise.statistics.moments import identity_metrics

FRONTIER = ("network", "method", "metric", "ranks", "params_ratio", "top1")
SHARES = ("network", "method", "metric", "top1", "params_ratio", "share", "strict")
SPEED = ("method", "engine", "batch", "k", "params_ratio", "milliseconds", "against_svd")
SR, RR = (0.3, 0.5, 0.7, 0.9), (0.0, 0.25, 0.5, 0.75)
# A dense accuracy less this many points is the lowest that the shares look at.
LOWEST = 3.0
WITHIN = 0.2


@dataclass
class Layer:
    """One linear layer of a network, with inputs and labels.

    Attributes:
        model: the network, or the part of it from the layer on.
        name: of the layer.
        inputs, labels: the test set.
        calibration, answers: inputs that may be learnt from, and their labels.
        ks: ranks of the truncated SVD, and those of the grid of sparse low rank.
    """

    model: nn.Module
    name: str
    inputs: Tensor
    labels: Tensor
    calibration: Tensor
    answers: Tensor
    ks: tuple[list[int], list[int]]
    stats: rw.Statistics = field(init=False)

    def __post_init__(self) -> None:
        self.stats = rw.collect(self.model, list(self.calibration.split(500)))

    @property
    def site(self) -> rw.Site:
        return self.stats.sites[self.name]

    @property
    def weight(self) -> Tensor:
        return site_weight(self.model, self.site)

    def data(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.calibration.split(500), self.answers.split(500), strict=True))

    def metrics(self, metric: str) -> list[Metric]:
        return identity_metrics(1, self.site.in_features) if metric == "weight" else self.stats[self.name].metrics()

    def accuracy(self, weight: Tensor, metric: str) -> float:
        """Per cent of the test set, with another weight; in the input metric the bias keeps the mean output."""
        trial = copy.deepcopy(self.model)
        layer = trial.get_submodule(self.name)
        layer.weight.copy_(weight)
        if metric == "input":
            layer.bias.copy_(self.stats[self.name].bias(self.weight, weight, site_bias(self.model, self.site)))
        answers = torch.cat([trial(x).argmax(1) for x in self.inputs.split(1000)])
        return 100 * float((answers == self.labels).double().mean())


def lenet300(module: ModuleType, quick: bool) -> Layer:
    """The first layer, 784 to 300."""
    images, labels = module.mnist("test")
    own, answers = module.mnist("train")
    few = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[: 2000 if quick else 10000]
    return Layer(
        model=module.lenet300(),
        name="fc1",
        inputs=module.normalise_mnist(images),
        labels=labels,
        calibration=module.normalise_mnist(own[few]),
        answers=answers[few],
        ks=([*range(2, 61, 6 if quick else 2)], [16, 32] if quick else [8, 12, 16, 24, 32, 48]),
    )


def mobilenet_v2(module: ModuleType, quick: bool) -> Layer:
    """The classifier, 1280 to 1000; it calibrates on features of its own photos, labelled by the network itself."""
    task = TASKS["mobilenet_v2"](module)
    model = task.model
    features: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    photos = torch.cat([task.calibration, task.images])
    own = torch.cat([model(task.normalise(part)).argmax(1) for part in photos.split(8)])
    handle.remove()
    x, count = torch.cat(features), len(task.calibration)
    return Layer(
        model=nn.Sequential(model.classifier),
        name="0",
        inputs=x[count:],
        labels=task.labels,
        calibration=x[:count],
        answers=own[:count],
        ks=([*range(16, 401, 64 if quick else 16)], [96] if quick else [64, 128, 192, 256]),
    )


LAYERS: dict[str, Callable[[ModuleType, bool], Layer]] = {"lenet300": lenet300, "mobilenet_v2": mobilenet_v2}


def magnitude(weight: Tensor, count: int) -> Tensor:
    """The weight with its largest entries alone."""
    kept = torch.zeros(weight.numel(), dtype=weight.dtype)
    kept[weight.abs().flatten().argsort(descending=True, stable=True)[:count]] = 1
    return weight * kept.reshape(weight.shape)


def points(network: str, layer: Layer, quick: bool) -> Iterator[Row]:
    """Every method at every place of its grid."""
    site, weight = layer.site, layer.weight
    outputs, inputs = site.weight_shape
    yield {"network": network, "method": "dense", "params_ratio": 1.0, "top1": layer.accuracy(weight, "weight")}

    def row(method: str, metric: str, format: Format, ranks: tuple[int, ...]) -> Row:
        factors = format.fit(site, weight, layer.metrics(metric), ranks)
        params = format.cost(site, ranks, bias=False).params
        found: Row = {"network": network, "method": method, "metric": metric, "ranks": list(ranks), "params": params}
        return {**found, "params_ratio": params / weight.numel(), "top1": layer.accuracy(factors.dense(), metric)}

    for metric, k in product(("weight", "input"), layer.ks[0]):
        yield row("svd", metric, get_format("svd"), (k,))
    criteria = {"slr-w": by_weight(layer.model, site), "slr-a": by_activation(layer.model, layer.stats, site)}
    for k, sr, rr in product(layer.ks[1], SR[1::2] if quick else SR, RR[::2] if quick else RR):
        ranks = paper_ranks(k, sr, rr, inputs, outputs)
        if sum(ranks[:2]) > min(outputs, inputs) or ranks[1] > min(ranks[2:]):
            continue
        scores = {**criteria, "slr-c": by_gradient(layer.model, site, layer.data(), ranks[:2])}
        given: Importance
        for method, given in scores.items():
            yield row(method, "weight", SparseLowRank({site.name: given}, refit=False), ranks)
        yield row("slr-a, refit", "weight", SparseLowRank({site.name: criteria["slr-a"]}), ranks)
        count = get_format("slr").cost(site, ranks, bias=False).params
        pruned = layer.accuracy(magnitude(weight, count), "weight")
        yield {"network": network, "method": "pruning", "params_ratio": count / weight.numel(), "top1": pruned}
    yield from chosen(network, layer, row)


def chosen(network: str, layer: Layer, row: Callable[..., Row]) -> Iterator[Row]:
    """Of each format the ranks that its curve predicts to be best for some numbers of parameters."""
    site, weight = layer.site, layer.weight
    budgets = [k * sum(site.weight_shape) for k in layer.ks[0][:: max(1, len(layer.ks[0]) // 12)]]
    for metric, format in product(("weight", "input"), (SparseLowRank(), Staircase())):
        curve = format.curve(site, weight, layer.metrics(metric), 1)
        seen = set()
        for budget in budgets:
            legal = [(error, ranks) for ranks, error in curve if format.cost(site, ranks, False).params <= budget]
            if legal and min(legal)[1] not in seen:
                seen.add(min(legal)[1])
                yield row(f"{format.name}, by curve", metric, format, min(legal)[1])


def shares(rows: Iterable[Row]) -> list[Row]:
    """Of every method the point with the smallest share of the SVD's parameters at equal accuracy."""
    rows = list(rows)
    lowest = rows[0]["top1"] - LOWEST
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
                        best |= {"top1": least["top1"], "params_ratio": least["params_ratio"]}
        found: Row = {"network": rows[0]["network"], "method": method, **best}
        result.append(found if metric is None else {**found, "metric": metric})
    return result


def frontier(rows: Iterable[Row]) -> list[Row]:
    """The points that no other one of the same network beats in both parameters and accuracy."""
    rows = sorted(rows, key=lambda row: (row["params_ratio"], -row["top1"]))
    kept: list[Row] = []
    for row in rows:
        if not kept or row["top1"] > kept[-1]["top1"]:
            kept.append(row)
    return kept


def speed(quick: bool) -> Iterator[Row]:
    """A layer of 4096 x 4096 at sr = rr = 0.5, beside the truncated SVD of the same k; the numbers do not matter."""
    size = 1024 if quick else 4096
    dense = nn.Linear(size, size)
    site = rw.find(nn.Sequential(dense), torch.zeros(1, size))["0"]
    for k, batch in product((size // 16, size // 8, size // 4), (1, 64)):
        ranks = {"svd": (k,), "slr": paper_ranks(k, 0.5, 0.5, size, size)}
        chains = {name: get_format(name).build(dense, ranks[name], bias=True).eval() for name in ranks}
        for chain in chains.values():
            for parameter in chain.parameters():
                nn.init.normal_(parameter, std=0.02)
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0)).int()
        chains["slr"][0].inputs.copy_(shuffled[: size // 2])
        chains["slr"][1].order.copy_(shuffled)
        models = {"dense": nn.Sequential(dense), **{name: nn.Sequential(chain) for name, chain in chains.items()}}
        for engine in ("torch", "onnxruntime"):
            x = torch.randn(batch, size)
            times = rw.evaluate.latency(models, x, engine=engine, threads=1, rounds=5 if quick else 30)
            for name in models:
                row: Row = {"method": name, "engine": engine, "batch": batch, "k": k}
                if name in ranks:
                    params = get_format(name).cost(site, ranks[name], bias=False).params
                    row |= {"params_ratio": params / size**2, "against_svd": times[name].median / times["svd"].median}
                yield {**row, "milliseconds": 1000 * times[name].median}


def criterion(module: ModuleType, quick: bool) -> Row:
    """Rank correlation of the first-order cost criterion with the exact one."""
    layer = lenet300(module, quick=True)
    data = [(x, y) for x, y in layer.data()][: 1 if quick else 4]
    k, sr, rr = 16, 0.5, 0.5
    ranks = paper_ranks(k, sr, rr, layer.site.in_features, layer.site.out_features)[:2]
    exact, first = (rule(layer.model, layer.site, data, ranks) for rule in (by_cost, by_gradient))
    correlations = [_spearman(a[0], b[0]) for a, b in zip(exact, first, strict=True)]
    return {"network": "lenet300", "k": k, "rr": rr, "inputs": correlations[0], "outputs": correlations[1]}


def _spearman(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([_places(a), _places(b)]))[0, 1])


def _places(values: Tensor) -> Tensor:
    """Places in ascending order, equal values sharing the mean of theirs."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    tables = [*LAYERS, "criterion", "speed"]
    options.add_argument("--tables", nargs="+", default=tables, choices=tables)
    arguments = options.parse_args()
    start(arguments)
    rows: list[Row] = []
    for name in [name for name in LAYERS if name in arguments.tables]:
        found = []
        for row in points(name, LAYERS[name](networks(), arguments.quick), arguments.quick):
            found.append({"table": "points", **row, "seed": arguments.seed})
        report(frontier(found), FRONTIER, f"{name}: what nothing else beats")
        found += [{"table": "shares", **row, "seed": arguments.seed} for row in shares(found)]
        report([row for row in found if row["table"] == "shares"], SHARES, f"{name}: in parts of the SVD's parameters")
        rows += found
    if "criterion" in arguments.tables:
        rows.append({"table": "criterion", **criterion(networks(), arguments.quick), "seed": arguments.seed})
        report(
            rows[-1:], ("network", "k", "rr", "inputs", "outputs"), "first-order cost against the exact one, Spearman"
        )
    if "speed" in arguments.tables:
        timed = [{"table": "speed", **row, "seed": arguments.seed} for row in speed(arguments.quick)]
        report(timed, SPEED, "4096 x 4096 at sr = rr = 0.5, one thread" if not arguments.quick else "1024 x 1024")
        rows += timed
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

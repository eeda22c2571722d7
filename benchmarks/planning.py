"""Choice of ranks once curves are known: how often plans are the best of all, and what that takes.

    python -m benchmarks.planning [--parts optimum time plan] [--quick] [--seed N] [--json FILE]

optimum  random tables of 14 sites within one budget, against branch and cut (HiGHS, from scipy): share of tables whose
         plan is the best of all, and the largest excess of its loss in per cent; `walk` is the method used before
time     CPU seconds for 14 to 300 sites within one to three budgets; `gap` bounds in per cent how much less another
         plan can lose, `filled` is the share of the limit that is filled most
plan     `Planner.plan` on ResNet-20 with every rank of svd, spatial_svd and tucker2: function calls of the first plan
         by a planner, its CPU seconds, and those of a further plan

Three kinds of tables: `uniform` losses and costs have nothing to do with each other; `decaying` ones have one rank, and
losses that fall with it like the tail of a spectrum, with a little noise; `two ranks` are like partial Tucker, with the
dense option. Further units weight the ranks differently, as MACs do compared with parameters.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import product

from benchmarks.common import Row, networks, parser, report, start
from benchmarks.walk import walked

Lists = list[list[float]]

COLUMNS = ("kind", "sites", "options", "budgets", "method", "tables", "best", "excess", "seconds", "gap", "filled")
COLUMNS += ("unit", "calls", "first", "further")
SHARES = (0.3, 0.27, 0.33)
SIZES = ((14, 200), (100, 300), (300, 1500))


def uniform(draw: random.Random, options: int) -> tuple[list[float], list[float]]:
    """Losses and costs of one site that are independent."""
    return [draw.random() for _ in range(options)], [draw.randint(1, 1000) for _ in range(options)]


def decaying(draw: random.Random, options: int) -> tuple[list[float], list[float]]:
    """One rank."""
    weight, rate, size = draw.uniform(0.3, 3), draw.uniform(1, 9), draw.randint(50, 500)
    losses = [weight * math.exp(-rate * r / options) * (1 + 0.01 * draw.random()) for r in range(1, options)]
    return [*losses, 0.0], [size * r for r in range(1, options + 1)]


def two_ranks(draw: random.Random, options: int) -> tuple[list[float], list[float]]:
    """Two ranks, of inputs and outputs."""
    side, sizes = math.isqrt(options), (draw.choice([16, 32, 64, 128]), draw.choice([16, 32, 64, 128]))
    rates, losses, costs = (draw.uniform(1, 6), draw.uniform(1, 6)), [0.0], [9.0 * sizes[0] * sizes[1]]
    for steps in product(range(1, side + 1), repeat=2):
        r, s = (max(size * step // side, 1) for size, step in zip(sizes, steps, strict=True))
        cost = sizes[0] * r + 9.0 * r * s + sizes[1] * s
        if cost < costs[0]:
            shares = [step / side for step in steps]
            kept = [1 - math.exp(-rate * x) * math.sqrt(1 - x) for rate, x in zip(rates, shares, strict=True)]
            losses.append(-math.log(max(kept[0] * kept[1] * (1 - 0.02 * draw.random()), 1e-6)))
            costs.append(cost)
    return losses, costs


KINDS: dict[str, Callable[[random.Random, int], tuple[list[float], list[float]]]] = {
    "uniform": uniform,
    "decaying": decaying,
    "two ranks": two_ranks,
}


def network(kind: str, sites: int, options: int, units: int, seed: int) -> tuple[Lists, list[Lists]]:
    """Losses and costs of every option of every site."""
    draw = random.Random(seed)
    losses, costs = [], []
    for _ in range(sites):
        own_losses, own_costs = KINDS[kind](draw, options)
        losses.append(own_losses)
        powers = [1.0, *(draw.uniform(0.9, 1.1) for _ in range(units - 1))]
        costs.append([own_costs, *([round(cost**power) for cost in own_costs] for power in powers[1:])])
    return losses, costs


def limits_of(costs: Sequence[Lists], shares: Sequence[float]) -> list[float]:
    """Limits at a share of the way from the cheapest plan to the most expensive one."""
    limits = []
    for unit, share in enumerate(shares):
        least, most = (sum(end(own[unit]) for own in costs) for end in (min, max))
        limits.append(least + share * (most - least))
    return limits


def total(values: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    """Loss or cost of a plan."""
    return sum(own[index] for own, index in zip(values, chosen, strict=True))


def best(losses: Lists, costs: Lists, limit: float) -> float:
    """The least loss by branch and cut."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    sites = [site for site, own in enumerate(losses) for _ in own]
    one_each = coo_array((np.ones(len(sites)), (sites, range(len(sites)))))
    within = LinearConstraint(np.concatenate([np.asarray(own, dtype=float) for own in costs])[None] / limit, -np.inf, 1)
    found = milp(
        np.concatenate([np.asarray(own, dtype=float) for own in losses]),
        constraints=[LinearConstraint(one_each, 1, 1), within],
        integrality=np.ones(len(sites)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    taken = iter(found.x.round())
    return total(losses, [[next(taken) for _ in own].index(1) for own in losses])


def optimum(arguments: argparse.Namespace) -> list[Row]:
    """Plans of the walk and of the solver against the best of all."""
    from rankwise.ranks.solvers import least_loss

    methods: dict[str, Callable[[Lists, Lists, float], list[int]]] = {
        "walk": walked,
        "now": lambda losses, costs, limit: least_loss(losses, [[own] for own in costs], [limit]),
    }
    rows: list[Row] = []
    sites, options = 14, 60
    for kind in KINDS:
        excess: dict[str, list[float]] = {name: [] for name in methods}
        seconds = dict.fromkeys(methods, 0.0)
        for number in range(3 if arguments.quick else 50):
            losses, units = network(kind, sites, options, 1, arguments.seed + number)
            (limit,) = limits_of(units, [random.Random(number).uniform(0.05, 0.6)])
            costs = [own[0] for own in units]
            least = best(losses, costs, limit)
            for name, method in methods.items():
                begin = time.process_time()
                chosen = method(losses, costs, limit)
                seconds[name] += time.process_time() - begin
                excess[name].append(max(total(losses, chosen) / least - 1, 0.0))
        for name, own in excess.items():
            row: Row = {"kind": kind, "sites": sites, "options": options, "budgets": 1, "method": name}
            row |= {"tables": len(own), "best": sum(value < 1e-9 for value in own) / len(own)}
            rows.append({**row, "excess": 100 * max(own), "seconds": seconds[name] / len(own)})
    return rows


def seconds(arguments: argparse.Namespace) -> list[Row]:
    """CPU seconds of the solver."""
    from rankwise.ranks.solvers import Tables, solve

    rows: list[Row] = []
    for kind, (sites, options), units in product(KINDS, SIZES[:2] if arguments.quick else SIZES, (1, 2, 3)):
        losses, costs = network(kind, sites, options, units, arguments.seed)
        limits, taken = limits_of(costs, SHARES[:units]), []
        for _ in range(1 if arguments.quick else 3):
            begin = time.process_time()
            solution = solve(Tables.of(losses, costs, limits))
            taken.append(time.process_time() - begin)
        chosen = solution.chosen_S.tolist()
        filled = [total([own[unit] for own in costs], chosen) / limit for unit, limit in enumerate(limits)]
        row: Row = {"kind": kind, "sites": sites, "options": options, "budgets": units, "method": "now"}
        row |= {"seconds": sorted(taken)[len(taken) // 2], "filled": max(filled)}
        rows.append({**row, "gap": 100 * solution.gap / max(total(losses, chosen), 1e-12)})
    return rows


def planner(arguments: argparse.Namespace) -> list[Row]:
    """CPU seconds and function calls of plans."""
    import torch

    import rankwise as rw
    from rankwise.planning.request import Request

    model = networks().resnet20().eval()
    sites = rw.find(model, torch.zeros(1, 3, 32, 32))
    curves = rw.profile(model, sites, metric="weight", formats=("svd", "spatial_svd", "tucker2"), round_to=1)
    rows: list[Row] = []
    for unit in ("macs", "params", "bytes"):
        request = Request(rule=rw.get_rule("knapsack"), keep={unit: 0.5})
        made = [rw.Planner.of(model, sites, metric="weight", curves=curves) for _ in range(3)]
        profiled = cProfile.Profile()
        profiled.runcall(made[0].plan, request)
        taken = []
        for own in (made[1], made[2], made[2]):
            begin = time.process_time()
            own.plan(request)
            taken.append(time.process_time() - begin)
        row: Row = {"kind": "resnet20", "sites": len(sites), "options": sum(map(len, curves.values())), "unit": unit}
        row |= {"calls": sum(entry.callcount for entry in profiled.getstats())}
        rows.append({**row, "first": min(taken[:2]), "further": taken[2]})
    return rows


PARTS = {"optimum": optimum, "time": seconds, "plan": planner}


def main() -> None:
    """Run the parts."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = options.parse_args()
    start(arguments)
    rows: list[Row] = []
    for part in arguments.parts:
        own = PARTS[part](arguments)
        rows += [{"part": part, **row} for row in own]
        report(own, [column for column in COLUMNS if any(column in row for row in own)], part)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

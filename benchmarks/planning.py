"""Time to choose ranks once curves are known: synthetic networks, one to three budgets.

    python -m benchmarks.planning [--quick] [--seed N] [--json FILE]

A site's error falls like the tail of a spectrum, with a little noise. The second unit weights the ranks differently, as
MACs do compared with parameters. `bound` is the best value of the dual function; no plan lies below it.
"""

from __future__ import annotations

import math
import random
import time

from benchmarks.common import Row, parser, report, start
from rankwise.ranks.solvers import least_loss

COLUMNS = ("sites", "options", "budgets", "seconds", "loss", "bound", "filled", "limit")
SHARES = (0.5, 0.45, 0.55)
LIMIT = 0.5  # seconds, for 200 sites with 1,000 ranks each


def network(sites: int, options: int, units: int, seed: int) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Losses and costs of every option of every site."""
    draw = random.Random(seed)
    losses, costs = [], []
    for _ in range(sites):
        weight, rate = draw.uniform(0.3, 3), draw.uniform(1, 9)
        noise = [1 + 0.01 * draw.random() for _ in range(options)]
        losses.append([weight * math.exp(-rate * r / options) * noise[r] for r in range(1, options)] + [0.0])
        sizes = [draw.randint(50, 500) for _ in range(units)]
        power = [draw.uniform(0.9, 1.1) for _ in range(units)]
        costs.append([[size * r**p for r in range(1, options + 1)] for size, p in zip(sizes, power, strict=True)])
    return losses, costs


def bound(losses: list[list[float]], costs: list[list[list[float]]], limits: list[float]) -> float:
    """The largest value of the dual function that the search for multipliers finds."""
    import torch

    from rankwise.ranks.solvers.ellipsoid import multipliers
    from rankwise.ranks.solvers.exchanges import least_shares
    from rankwise.ranks.solvers.padding import tables

    losses_SO, costs_USO, limits_U = tables(losses, costs, limits)
    start_S = least_shares(losses_SO, costs_USO, limits_U)
    multipliers_U = multipliers(losses_SO, costs_USO, limits_U, start_S)[1]
    reduced_SO = losses_SO + torch.tensordot(multipliers_U, costs_USO, 1)
    return float(reduced_SO.amin(1).sum() - multipliers_U @ limits_U)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    rows: list[Row] = []
    for sites, options in ((20, 200), (200, 1000)):
        for units in (1, 2, 3):
            losses, costs = network(sites, options, units, arguments.seed)
            limits = [
                share * sum(site[u][-1] for site in costs) for u, share in zip(range(units), SHARES, strict=False)
            ]
            seconds = []
            for _ in range(1 if arguments.quick else 5):
                begin = time.perf_counter()
                chosen = least_loss(losses, costs, limits)
                seconds.append(time.perf_counter() - begin)
            used = [sum(s[u][i] for s, i in zip(costs, chosen, strict=True)) / limits[u] for u in range(units)]
            row: Row = {
                "sites": sites,
                "options": options,
                "budgets": units,
                "seconds": sorted(seconds)[len(seconds) // 2],
            }
            row["loss"] = sum(site[index] for site, index in zip(losses, chosen, strict=True))
            row["filled"] = max(used)
            if units > 1:
                row["bound"] = bound(losses, costs, limits)
            if sites == 200:
                row["limit"] = LIMIT
            rows.append(row)
    report(rows, COLUMNS, "choice of ranks (median seconds)", arguments.json)


if __name__ == "__main__":
    main()

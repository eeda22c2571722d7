"""The search that trains weights too, on ResNet-20: the gain of its weight phase, compared with the default rule.

    python -m benchmarks.rank_search [--keep 0.5] [--steps 60] [--quick] [--seed N] [--json FILE]

The alphas minimise the divergence from the dense network's answers times the expected share, on unlabelled calibration
images. Every five steps the weights minimise the penalty for five steps, and the fits are repeated. Each plan is
factorised sequentially, from the original and from the moved weights. Costs and pictures are the same as in
`benchmarks.rank_rules`; `moved_top1` is measured before the network is factorised.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import kl_div

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.rank_rules import Case
from rankwise.training import RankSearch

COLUMNS = ("network", "method", "keep", "top1", "agreement", "moved_top1", "macs_ratio", "distance", "seconds")
EVERY, RATE, ALPHA_RATE = 5, 1e-3, 0.1


def search(case: Case, steps: int, weights: bool) -> tuple[nn.Module, RankSearch]:
    """A copy of the network, its weights moved or not, and the search after all steps."""
    model = copy.deepcopy(case.task.model)
    found = RankSearch(model, case.stats.sites, candidates=6)
    alphas = torch.optim.Adam(found.parameters(), lr=ALPHA_RATE)
    moving = torch.optim.Adam([model.get_submodule(name).weight for name in found.options], lr=RATE)  # type: ignore[misc]
    for step in range(steps):
        batch = case.batches[step % len(case.batches)]
        with torch.no_grad():
            answers = case.task.model(batch).log_softmax(1)
        outputs = functional_call(model, found.mixed(), (batch,)).log_softmax(1)
        alphas.zero_grad()
        (kl_div(outputs, answers, reduction="batchmean", log_target=True) * found.share()).backward()
        alphas.step()
        if weights and step % EVERY == EVERY - 1:
            for _ in range(EVERY):
                moving.zero_grad()
                found.penalty().backward()
                moving.step()
            found.refit()
    return model, found


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--keep", type=float, default=0.5)
    options.add_argument("--steps", type=int, default=60)
    arguments = options.parse_args()
    start(arguments)
    steps = 10 if arguments.quick else arguments.steps
    case = Case.of("resnet20", arguments.quick)
    rows: list[Row] = []

    def row(method: str, plan: rw.Plan, model: nn.Module, seconds: float) -> Row:
        small = rw.factorise(model, plan, data=case.batches)
        task = case.task
        own: Row = {"network": case.name, "method": method, "keep": arguments.keep, "seconds": seconds}
        own["top1"] = 100 * float((task.answers(small, task.images) == task.labels).double().mean())
        own["agreement"] = 100 * float((task.answers(small, case.further) == case.dense).double().mean())
        own["moved_top1"] = 100 * float((task.answers(model, task.images) == task.labels).double().mean())
        own["macs_ratio"] = plan.planned["macs"] / plan.dense["macs"]
        rows.append(own)
        print(f"{method}: {own['top1']:.1f} ({own['agreement']:.2f})", flush=True)
        return own

    for rule in ("knapsack", "continuous", "continuous:loss=product"):
        begin = time.perf_counter()
        plan = rw.choose(case.task.model, case.stats, keep={"macs": arguments.keep}, rule=rule, curves=case.curves)
        row(rule, plan, case.task.model, time.perf_counter() - begin)
    for weights in (False, True):
        begin = time.perf_counter()
        model, found = search(case, steps, weights)
        plan, seconds = found.plan({"macs": arguments.keep}), time.perf_counter() - begin
        name = "alphas and weights" if weights else "alphas alone"
        row(name, plan, case.task.model, seconds)["distance"] = float(found.distance().detach())
        if weights:
            row(f"{name}, moved", plan, model, seconds)["distance"] = float(found.distance().detach())
    report([{**each, "seed": arguments.seed} for each in rows], COLUMNS, "search with weights", arguments.json)


if __name__ == "__main__":
    main()

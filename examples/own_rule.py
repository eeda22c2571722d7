"""Add a rank rule: reduce ranks step by step, the step with the least error per saving first.

python examples/own_rule.py
"""

from __future__ import annotations

from dataclasses import dataclass

import rankwise as rw
from rankwise.demo import digits, train
from rankwise.ranks import Pick, Problem, Rule


@dataclass(frozen=True, kw_only=True)
class Greedy(Rule):
    """Start dense; the step with the least error for what it saves comes next, until the budget is met."""

    name = "greedy"
    summary = "smaller options step by step, the least error for what it saves first"

    def choose(self, problem: Problem) -> list[Pick]:
        (unit,) = problem.limits  # this rule knows one budget
        sites, limit = problem.sites, problem.limits[unit]
        costs = [site.costs[unit] for site in sites]
        chosen = [max(range(len(own)), key=own.__getitem__) for own in costs]
        while sum(own[at] for own, at in zip(costs, chosen, strict=True)) > limit:
            steps = [
                ((option.error - site.options[at].error) / (own[at] - own[to]), number, to)
                for number, (site, own, at) in enumerate(zip(sites, costs, chosen, strict=True))
                for to, option in enumerate(site.options)
                if own[to] < own[at]
            ]
            if not steps:
                raise ValueError(f"greedy: no plan meets a {unit} limit of {limit:,.0f}; raise the budget")
            _, number, to = min(steps)
            chosen[number] = to
        return [Pick(at, "the cheapest steps first") for at in chosen]


def main() -> None:
    (images, labels), (test_images, test_labels) = digits(seed=0)
    model = train(images, labels, seed=0)
    batches = list(images[:300].split(50))
    for rule in (Greedy(), "knapsack"):
        small, report = rw.compress(model, batches, keep={"macs": 0.3}, rule=rule)
        top1 = rw.evaluate.accuracy(small, [(test_images, test_labels)])["top1"]
        print(f"{rule!s:<10} {top1:.2f} %  {report.plan.planned['macs'] / report.plan.dense['macs']:.1%} of the MACs")


if __name__ == "__main__":
    main()

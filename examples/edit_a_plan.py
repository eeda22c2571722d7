"""Edit a plan: it is data that a program, or a person with an editor, may change.

python examples/edit_a_plan.py
"""

from __future__ import annotations

from dataclasses import replace

import rankwise as rw
from rankwise.demo import digits, train


def main() -> None:
    (images, labels), _ = digits(seed=0)
    model = train(images, labels, seed=0)
    batches = list(images[:300].split(50))
    stats = rw.collect(model, batches)

    # Constraints are the usual way.
    plan = rw.choose(model, stats, keep={"macs": 0.5}, ignore=["0"], pin={"7": "tucker2:24,24"})
    print(plan.to_yaml())

    # Or change the plan: here layer 3 stays dense after all.
    rows = tuple(replace(row, format="dense", ranks=()) if row.site == "3" else row for row in plan.rows)
    small = rw.factorise(model, replace(plan, rows=rows), data=batches)
    print(small)


if __name__ == "__main__":
    main()

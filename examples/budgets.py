"""Many budgets from one pass over the data: accuracy against the multiply-accumulates that are kept.

python examples/budgets.py
"""

from __future__ import annotations

import rankwise as rw
from rankwise.demo import digits, train


def main() -> None:
    (images, labels), (test_images, test_labels) = digits(seed=0)
    model = train(images, labels, seed=0)
    test = [(test_images, test_labels)]
    batches = list(images[:300].split(50))
    stats = rw.collect(model, batches)

    print(f"dense      {rw.evaluate.accuracy(model, test)['top1']:.2f} %")
    for keep in (0.5, 0.25, 0.15, 0.1):
        plan = rw.choose(model, stats, keep={"macs": keep})
        small = rw.factorise(model, plan, data=batches)
        share = plan.planned["macs"] / plan.dense["macs"]
        print(f"keep {keep:4.2f}  {rw.evaluate.accuracy(small, test)['top1']:.2f} %  with {share:.1%} of the MACs")


if __name__ == "__main__":
    main()

"""Compress a network to half of its multiply-accumulates, save it, and load it again.

python examples/compress.py
"""

from __future__ import annotations

import tempfile

import torch

import rankwise as rw
from rankwise.demo import build, digits, train


def main() -> None:
    (images, labels), (test_images, test_labels) = digits(seed=0)
    model = train(images, labels, seed=0)
    test = [(test_images, test_labels)]

    # A few hundred inputs, no labels. The model is not changed.
    batches = list(images[:300].split(50))
    example = batches[0][:1]
    plan = rw.choose(model, rw.collect(model, batches), keep={"macs": 0.5})
    small = rw.factorise(model, plan, data=batches)

    for row in plan.rows:
        print(f"{row.site:4} {row.format:12} {row.ranks!s:10} {row.why}")
    for name, network in (("dense", model), ("compressed", small)):
        size = rw.evaluate.size(network, example)
        print(f"{name:10} {size.macs:>9,} MACs  {rw.evaluate.accuracy(network, test)['top1']:.2f} %")

    with tempfile.TemporaryDirectory() as folder:
        rw.save(small, folder, plan=plan)
        again = rw.load(build(), folder).eval()
    print("same answers after loading:", torch.equal(again(test_images), small(test_images)))


if __name__ == "__main__":
    main()

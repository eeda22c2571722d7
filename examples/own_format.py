"""Add a format: few channels first, then the kernel.

python examples/own_format.py
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

import rankwise as rw
from rankwise.demo import digits, train
from rankwise.formats import Ranks, register
from rankwise.formats.ladders import single
from rankwise.formats.multilinear import Multilinear
from rankwise.formats.network import Network
from rankwise.formats.shape import Shape
from rankwise.linalg import splitting


class Tucker1(Multilinear):
    """`W[t, c, q] = sum_r A[t, r, q] B[r, c]`: a 1 x 1 convolution to r channels, then a k x k convolution."""

    name = "tucker1"
    summary = "two factors: a 1 x 1 convolution to few channels, a k x k convolution back"
    use = "convolutions with many more channels than outputs"

    def unfit(self, site: rw.Site) -> str | None:
        return None if site.taps > 1 else f"{self.name} needs a kernel of several taps; use svd"

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, "q": shape.taps, "r": ranks[0]}
        return Network(("rc", "trq"), "c", "t", "q", sizes, shape.kernel)

    def largest(self, shape: Shape) -> Ranks:
        return (min(shape.channels, shape.outputs * shape.taps),)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        return [single(self.largest(shape)[0], step)]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        B_CR, rest = splitting.split(X.movedim(1, 0).flatten(1), network.sizes["r"])
        yield [B_CR.mT, rest.reshape(-1, X.shape[0], X.shape[2]).movedim(0, 1)]


def main() -> None:
    (images, labels), _ = digits(seed=0)
    model = train(images, labels, seed=0)
    register(Tucker1())
    _, report = rw.compress(model, list(images[:300].split(50)), keep={"macs": 0.5}, formats=["svd", "tucker1"])
    print(report)
    print(", ".join(f"{row.site}: {row.format} {row.ranks}" for row in report.plan.factorised))


if __name__ == "__main__":
    main()

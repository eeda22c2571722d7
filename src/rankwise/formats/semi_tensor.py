"""Semi-tensor train and ring: rows of factors that serve several slices of their modes alike.

The semi-tensor product of `A` (m x n t) and `B` (n x q) is `A (B kron I_t)`: `B` has 1/t of the columns' modes, and the
t slices are a mode of `A`. The mirrored product is `(B kron I_t) A`.

Letters: see `row`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..network.site import Site
from .multilinear import Multilinear
from .network import Network
from .row import Row, single
from .shape import Shape
from .tensor_train import TensorTrain

# Middle bonds that curves of trains and of rings try, as for a tensor train: at half of the MACs of layers of a
# ResNet-20 these had the lowest errors with 2 and 4 slices.
MIDDLE, MIDDLE_OF_RINGS = (0.5, 0.7), (0.3, 0.5)


@dataclass(frozen=True, kw_only=True)
class SemiTensorTrain(TensorTrain):
    """`W[t u, c s, h, w] = sum A[t, a] G[a, u, h, b] F[b, w, s, d] D[d, c]`: `A` and `D` serve every slice alike.

    A matrix: `W[t u, c s] = sum A[t, a] G[a, u, s, b] D[b, c]`. With `cores="all"` every product of two factors is a
    semi-tensor product as in the paper: `W[t, c s, h, w] = sum A[t, a] G[a, h, b] F[b, w, s, d] D[d, c]`, and
    `W[t, c s] = sum A[t, s, a] D[a, c]`, which is `A (D kron I_s)`. Taps of a kernel have no slices.

    Args:
        slices: of each mode that a factor serves; a mode whose size they do not divide has one slice.
        cores: "outer", the factors at the outputs and inputs serve slices, or "all" but the first.
        outputs, inputs: sizes of the modes of each side, one by default; every mode has a factor of its own.

    Source: Zhao, Liu, Huang, Zhu, "Semi-tensor Product-based Tensor Decomposition for Neural Network Compression",
    2021, arXiv 2109.15200.
    """

    slices: int = 2
    cores: str = "outer"

    name = "stt"
    summary = "semi-tensor train: a tensor train whose outer factors serve slices of the channels alike, by default two"
    use = "as tt, where the outer factors are most of the cost: here they serve all slices of the channels alike"

    middle = MIDDLE

    def unfit(self, site: Site) -> str | None:
        why, shape = super().unfit(site), Shape.of_site(site)
        if why is None and not self.row(shape).slices:
            numbers = "an even number" if self.slices == 2 else f"a number, divided by {self.slices},"
            return f"{self.name} needs {numbers} of inputs or outputs; use svd"
        return why

    def pairs(self, shape: Shape) -> bool:
        return False

    def row(self, shape: Shape) -> Row:
        return single(shape, self.outputs, self.inputs, self.slices, every=self.cores == "all")

    def fits_at_once(self, network: Network, R: int, S: int) -> bool:
        return Multilinear.fits_at_once(self, network, R, S)


class SemiTensorRing(SemiTensorTrain):
    """A semi-tensor train whose first and last factor share a bond `x` too.

    Source: Zhao, Liu, Huang, Zhu, "Semi-tensor Product-based Tensor Decomposition for Neural Network Compression",
    2021, arXiv 2109.15200.
    """

    name = "str"
    summary = "semi-tensor ring: a semi-tensor train whose ends are bound to each other"
    use = "as stt, with a closing bond: more freedom, and the inner layers run once for each of its states"
    random = 31
    closed = True
    middle = MIDDLE_OF_RINGS

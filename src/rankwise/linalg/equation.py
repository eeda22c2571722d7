"""Equations of index letters such as "ta,cb,abhw->tchw": the kernel that factors multiply to, and other products.

Sums run over the bonds, the letters that the kernel does not have. The letter "g" is not for equations: it numbers the
problems of a batch, and tensors of a batch have it first. A tensor that all problems share has size 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import torch
from torch import Tensor

# Letters of a tensor and their sizes.
Sized = tuple[str, tuple[int, ...]]
BATCH = "g"


@dataclass(frozen=True)
class Equation:
    """Index letters of the factors, and of the kernel's output and input modes (in the order of the metric's inputs).

    Every letter of the kernel belongs to one factor; all others are bonds, which are summed over.
    """

    factors: tuple[str, ...]
    outputs: str
    inputs: str

    @classmethod
    def parse(cls, text: str, outputs: int = 1) -> Equation:
        """From "ta,cb,abhw->tchw"; the first `outputs` letters of the result are output modes."""
        factors, result = text.split("->")
        return cls(tuple(factors.split(",")), result[:outputs], result[outputs:])

    @cached_property
    def kernel(self) -> str:
        return self.outputs + self.inputs

    @cached_property
    def output_factor(self) -> int | None:
        """Number of the factor that holds all output modes and no input mode."""
        for number, letters in enumerate(self.factors):
            if set(self.outputs) <= set(letters) and not set(self.inputs) & set(letters):
                return number
        return None

    @cached_property
    def split(self) -> Equation:
        """The same kernel, with the outputs that no factor holds together with the others read as inputs.

        Afterwards one factor holds all outputs and no input, if any factor holds outputs and no input.
        """
        holders = [letters for letters in self.factors if not set(self.inputs) & set(letters)]
        held = max((len(set(self.outputs) & set(letters)), -n) for n, letters in enumerate([*holders, ""]))
        if not 0 < held[0] < len(self.outputs):
            return self
        outputs = "".join(letter for letter in self.outputs if letter in holders[-held[1]])
        return Equation(self.factors, outputs, "".join(x for x in self.outputs if x not in outputs) + self.inputs)

    def bonds(self, letters: str) -> str:
        """Those of the letters that are bonds."""
        return "".join(letter for letter in letters if letter not in self.kernel)

    def sizes(self, factors: Sequence[Tensor]) -> dict[str, int]:
        """Size of every letter."""
        pairs = zip(self.factors, factors, strict=True)
        return _sizes(*((letters, factor.shape[factor.dim() - len(letters) :]) for letters, factor in pairs))


def contract(terms: Sequence[tuple[str, Tensor]], result: str) -> Tensor:
    """Sum of products over all letters that are not in the result, pair by pair; see `_order`."""
    left = list(terms)
    for i, j, a, b, kept in _order(tuple((letters, tensor.shape) for letters, tensor in terms), result):
        product = torch.einsum(f"{a},{b}->{kept}", left[i][1], left[j][1])
        left = [term for number, term in enumerate(left) if number not in (i, j)] + [(kept, product)]
    ((letters, tensor),) = left
    if len(letters) == len(result):
        return arranged(tensor, letters, result)
    return torch.einsum(f"{letters}->{result}", tensor)


@lru_cache(maxsize=4096)  # a fit asks for the same products in every sweep
def _order(terms: tuple[Sized, ...], result: str) -> tuple[tuple[int, int, str, str, str], ...]:
    """Which two terms to multiply next: their places, their letters, and the letters of the product.

    Greedy: always the pair whose product has the fewest numbers, less those of its two factors.
    """
    left, order = list(terms), []
    while len(left) > 1:
        i, j = min(combinations(range(len(left)), 2), key=lambda pair: _pair_size(left, pair[0], pair[1], result))
        (a, _), (b, _), sizes = left[i], left[j], _sizes(left[i], left[j])
        kept = _kept(left, i, j, result)
        if len(left) == 2 and set(kept) == set(result):
            kept = result
        order.append((i, j, a, b, kept))
        product = kept, tuple(sizes[letter] for letter in kept)
        left = [term for number, term in enumerate(left) if number not in (i, j)] + [product]
    return tuple(order)


def _kept(terms: Sequence[Sized], i: int, j: int, result: str) -> str:
    needed = set(result).union(*(letters for number, (letters, _) in enumerate(terms) if number not in (i, j)))
    return "".join(sorted(set(terms[i][0] + terms[j][0]) & needed))


def _sizes(*terms: Sized) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letters, shape in terms:
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def _pair_size(terms: Sequence[Sized], i: int, j: int, result: str) -> int:
    sizes = _sizes(terms[i], terms[j])
    product = math.prod(sizes[letter] for letter in _kept(terms, i, j, result))
    return product - math.prod(terms[i][1]) - math.prod(terms[j][1])


def arranged(tensor: Tensor, letters: str, order: str) -> Tensor:
    """The same tensor with its letters in another order."""
    return tensor if letters == order else tensor.permute([letters.index(letter) for letter in order])


def compose(equation: Equation, factors: Sequence[Tensor]) -> Tensor:
    """The kernel that the factors multiply to, with one dimension per mode; of a batch if the factors are of one."""
    batch = BATCH if factors[0].dim() > len(equation.factors[0]) else ""
    terms = [(batch + letters, factor) for letters, factor in zip(equation.factors, factors, strict=True)]
    return contract(terms, batch + equation.kernel)


def equalised(equation: Equation, factors: Sequence[Tensor]) -> list[Tensor]:
    """The same kernel, with each bond state of equal norm in all factors that share it; also of a batch."""
    factors = list(factors)
    batch = factors[0].dim() - len(equation.factors[0])
    for bond in sorted(set(equation.bonds("".join(equation.factors)))):
        holders = [k for k, letters in enumerate(equation.factors) if bond in letters]
        places = [batch + equation.factors[k].index(bond) for k in holders]
        norms = torch.stack(
            [
                torch.linalg.vector_norm(factors[k], dim=[n for n in range(batch, factors[k].dim()) if n != place])
                if factors[k].dim() > batch + 1
                else factors[k].abs()
                for k, place in zip(holders, places, strict=True)
            ]
        )
        usable = (norms > 0).all(0)
        mean = norms.clamp_min(torch.finfo(norms.dtype).tiny).log().mean(0).exp()
        scales = torch.where(usable, mean / norms, 1.0)
        for k, place, scale in zip(holders, places, scales, strict=True):
            shape = [*scale.shape[:batch], *(-1 if n == place else 1 for n in range(batch, factors[k].dim()))]
            factors[k] = factors[k] * scale.reshape(shape)
    return factors

"""Equations of index letters such as "ta,cb,abhw->tchw": the kernel that factors multiply to, and other products.

Sums run over the bonds, the letters that the kernel does not have.
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
    return {letter: size for letters, shape in terms for letter, size in zip(letters, shape, strict=True)}


def _pair_size(terms: Sequence[Sized], i: int, j: int, result: str) -> int:
    sizes = _sizes(terms[i], terms[j])
    product = math.prod(sizes[letter] for letter in _kept(terms, i, j, result))
    return product - math.prod(terms[i][1]) - math.prod(terms[j][1])


def arranged(tensor: Tensor, letters: str, order: str) -> Tensor:
    """The same tensor with its letters in another order."""
    return tensor if letters == order else tensor.permute([letters.index(letter) for letter in order])


def compose(equation: Equation, factors: Sequence[Tensor]) -> Tensor:
    """The kernel that the factors multiply to, with one dimension per mode."""
    return contract(list(zip(equation.factors, factors, strict=True)), equation.kernel)


def equalised(equation: Equation, factors: Sequence[Tensor]) -> list[Tensor]:
    """The same kernel, with each bond state of equal norm in all factors that share it."""
    factors = list(factors)
    for bond in sorted(set("".join(equation.factors)) - set(equation.kernel)):
        holders = [k for k, letters in enumerate(equation.factors) if bond in letters]
        norms = []
        for k in holders:
            moved = factors[k].movedim(equation.factors[k].index(bond), 0).flatten(1)
            norms.append(torch.linalg.vector_norm(moved, dim=1))
        stacked = torch.stack(norms)
        usable = (stacked > 0).all(0)
        mean = torch.where(usable, stacked.clamp_min(torch.finfo(stacked.dtype).tiny).log().mean(0).exp(), 1.0)
        for k, norm in zip(holders, norms, strict=True):
            scale = torch.where(usable, mean / norm, 1.0)
            shape = [-1 if letter == bond else 1 for letter in equation.factors[k]]
            factors[k] = factors[k] * scale.view(shape)
    return factors

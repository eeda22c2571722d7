"""One move of all factors of a batch of multilinear fits: all at once, or in the weight metric one after the other.

`Together` takes a damped Gauss-Newton step. `Alternating` is for large problems in the weight metric: there each
factor's normal matrix is a Kronecker product, so the best factor with all others held has a closed form. Such sweeps
are slow where factors resemble each other, so after a sweep a jump goes further along the way from the sweep before,
and is kept if it lowers the error.

Letters: G problems, N numbers in all factors but the output factor.

Sources: Kroonenberg, de Leeuw, 1980, and Carroll, Chang, 1970 (alternating least squares); Mitchell, Ye, De Sterck,
"Nesterov Acceleration of Alternating Least Squares for Canonical Tensor Decomposition", 2018 (the jumps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .block import Block
from .equation import BATCH, contract, equalised
from .gauss_newton import Linearised
from .problems import PROXIMAL, Problems, Settled, per_problem

# After this many sweeps, one more conjugate gradient step: near the solution longer steps are right.
LONGER = 4


class Together:
    """A damped Gauss-Newton step.

    Args:
        steps: conjugate gradient steps; 0 to solve directly.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        self.linear: Linearised | None = None
        self.change_GN: Tensor | None = None

    def __call__(
        self, problems: Problems, here: Settled, near: bool, damping: tuple[Tensor, Tensor]
    ) -> tuple[Settled, Tensor]:
        """Try a step.

        Args:
            problems: the batch.
            here: where it is.
            near: whether an error is so small that it must be computed exactly.
            damping: see `Linearised.step`.

        Returns:
            Where the step leads, and the decreases of the squared errors that were expected.
        """
        if self.linear is None:
            steps = self.steps and self.steps + self.count // LONGER
            self.linear = Linearised(problems, here, steps)
        self.change_GN, expected_G = self.linear.step(*damping, self.change_GN)
        self.count += 1
        moved = equalised(problems.equation, self.linear.moved(self.change_GN))
        return problems.settled(moved, near or not self.steps), expected_G

    def note(self, good_G: Tensor, any_good: bool) -> None:
        """What was accepted: a refused change is no direction to go on in."""
        if self.change_GN is not None:
            self.change_GN = torch.where(good_G[:, None], self.change_GN, 0.0) if self.steps else None
        self.linear = None if any_good else self.linear

    def keep(self, kept: Tensor) -> None:
        """Only these problems go on."""
        self.linear = None
        self.change_GN = None if self.change_GN is None else self.change_GN[kept]


class Alternating:
    """One factor after the other in the weight metric, then a jump further along the way from the sweep before.

    A jump that helps makes the next one 1.5 times as long, any other half as long.
    """

    def __init__(self) -> None:
        self.jump_G: Tensor | None = None
        self.swept: list[Tensor] = []

    def __call__(
        self, problems: Problems, here: Settled, near: bool, damping: tuple[Tensor, Tensor]
    ) -> tuple[Settled, Tensor]:
        """See `Together`; closed forms need no damping."""
        factors = self._swept(problems, equalised(problems.equation, here.factors))
        moved = problems.settled(factors, near)
        before, self.swept = self.swept, moved.factors
        if self.jump_G is None:
            self.jump_G = torch.ones_like(here.error_G)
        if before:
            pairs = zip(before, moved.factors, strict=True)
            factors = [after + per_problem(self.jump_G, after) * (after - last) for last, after in pairs]
            ahead = problems.settled(factors, near)
            helps_G = ahead.error_G < moved.error_G
            self.jump_G = self.jump_G * torch.where(helps_G, 1.5, 0.5)
            moved = ahead.where(helps_G, moved)
        return moved, here.error_G - moved.error_G

    def _swept(self, problems: Problems, factors: Sequence[Tensor]) -> list[Tensor]:
        """Each factor but the output factor as the best for the others."""
        equation, moved, last = problems.equation, list(factors), problems.equation.output_factor
        sizes = equation.sizes(moved)
        letters = BATCH + equation.kernel
        target = letters, problems.W_GTD.reshape(-1, *(sizes[letter] for letter in equation.kernel))
        if last is not None:  # A^T W serves all factors
            letters = BATCH + equation.bonds(equation.factors[last]) + equation.inputs
            target = letters, contract([target, (BATCH + equation.factors[last], moved[last])], letters)
        for k, own in enumerate(equation.factors):
            if k != last:
                others = [term for n, term in enumerate(problems.terms(moved)) if n not in (k, last)]
                right = contract([target, *others], BATCH + own)
                moved[k] = Block(problems, moved, k).solved(moved[k], right, PROXIMAL)
        return moved

    def note(self, good_G: Tensor, any_good: bool) -> None:
        """Jumps need no note of what was accepted."""

    def keep(self, kept: Tensor) -> None:
        """Only these problems go on."""
        self.swept = [factor[kept] for factor in self.swept]
        self.jump_G = None if self.jump_G is None else self.jump_G[kept]

"""The step of all factors at once, against derivatives that torch takes and a dense solution."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rankwise.linalg import gauss_newton
from rankwise.linalg.conjugate import conjugate_gradients
from rankwise.linalg.descent import Effort, Fitted
from rankwise.linalg.equation import Equation, compose
from rankwise.linalg.gauss_newton import Linearised
from rankwise.linalg.metric import Dense, Sampled
from rankwise.linalg.multilinear import Problem, fits
from rankwise.linalg.problems import Problems
from rankwise.linalg.stacked import stacked

T, C, H, W, R = 5, 4, 3, 2, 3
D = C * H * W
FORMS = {
    "cp": ("tr,cr,hr,wr->tchw", [(T, R), (C, R), (H, R), (W, R)]),
    "tucker": ("ta,cb,abhw->tchw", [(T, 3), (C, 2), (3, 2, H, W)]),
    "train": ("ta,ahb,bwd,dc->tchw", [(T, 3), (3, H, 4), (4, W, 3), (3, C)]),
    "no output factor": ("tra,cr,ahr,wr->tchw", [(T, R, 2), (C, R), (2, H, R), (W, R)]),
    "more states than outputs": ("tr,cr,rhw->tchw", [(T, 7), (C, 7), (7, H, W)]),
}
each = pytest.mark.parametrize("form", FORMS)

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linearised(form: str, steps: int = 0) -> tuple[Problems, Linearised]:
    """A batch of two, with a kernel and a metric of their own."""
    text, shapes = FORMS[form]
    metrics = []
    for seed in (0, 1):
        rows = normal(200, D, seed=10 * seed + 1)
        rows = rows + 0.5 * rows.roll(1, 1)
        metrics.append(Dense(rows.mT @ rows / 200))
    kernels = torch.stack([normal(T, D, seed=10 * seed + 2) for seed in (0, 1)])
    problems = Problems(kernels, stacked(metrics), Equation.parse(text))
    start = [torch.stack([normal(*shape, seed=s + n) for s in (3, 13)]) for n, shape in enumerate(shapes)]
    return problems, Linearised(problems, problems.settled(start), steps)


@each
def test_the_slope_is_the_derivative_of_the_error(form: str) -> None:
    problems, linear = linearised(form)
    with torch.enable_grad():
        d_GN = torch.zeros_like(linear.slope_GN, requires_grad=True)
        (slope_GN,) = torch.autograd.grad(problems.error(linear.moved(d_GN)).sum(), d_GN)
    torch.testing.assert_close(linear.slope_GN, -slope_GN / 2, atol=1e-7, rtol=1e-6)


@each
def test_curvature_is_that_of_the_error_with_the_best_output_factor(form: str) -> None:
    """Along any change the linear model's least error is `e - 2 s^T d + d^T H d`."""
    problems, linear = linearised(form)
    H_GNN, last = linear.matrix, problems.equation.output_factor
    torch.testing.assert_close(H_GNN, H_GNN.mT, atol=1e-9, rtol=1e-7)
    assert float(torch.linalg.eigvalsh(H_GNN).min()) > -1e-7 * float(H_GNN.diagonal(dim1=1, dim2=2).max())
    for g in (0, 1):
        factors, Sigma = [factor[g] for factor in linear.factors], problems.metric.dense()[g]
        root = torch.linalg.cholesky(Sigma)
        repairs = torch.zeros(T * D, 1, dtype=torch.float64)
        if last is not None:  # what the output factor can repair
            units = torch.eye(factors[last].numel(), dtype=torch.float64).reshape(-1, *factors[last].shape)
            made = [compose(problems.equation, [*factors[:last], unit, *factors[last + 1 :]]) for unit in units]
            repairs = torch.stack([(V.reshape(T, D) @ root).flatten() for V in made], 1)
        d_N = normal(H_GNN.shape[1], seed=50 + g)
        d_GN = torch.zeros(2, len(d_N), dtype=torch.float64)
        d_GN[g] = 1e-6 * d_N
        ahead, behind = (compose(problems.equation, linear.moved(sign * d_GN))[g] for sign in (1, -1))
        change_TD = ((ahead - behind) / 2e-6).reshape(T, D)
        V_TD = compose(problems.equation, factors).reshape(T, D)
        left_TD = problems.W_GTD[g] - V_TD - change_TD
        error = float(((problems.W_GTD[g] - V_TD) @ root).square().sum())
        left = (left_TD @ root).flatten()
        solution = torch.linalg.lstsq(repairs, left[:, None], driver="gelsd").solution
        least = float((left - (repairs @ solution)[:, 0]).square().sum())
        model = error - 2 * float(linear.slope_GN[g] @ d_N) + float(d_N @ H_GNN[g] @ d_N)
        assert least == pytest.approx(model, rel=1e-5)


@each
@pytest.mark.parametrize("single", [False, True])
def test_conjugate_gradients_come_to_the_direct_step(form: str, single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if single:
        monkeypatch.setattr(gauss_newton, "SINGLE_PRECISION", D)
    damping_G, pull_G = torch.tensor([1e-2, 1e-1], dtype=torch.float64), torch.tensor([0.0, 1e-2], dtype=torch.float64)
    direct, iterated = linearised(form)[1], linearised(form, 400)[1]
    for name in ("x_GN", "slope_GN", "scale"):
        monkeypatch.setattr(iterated, name, getattr(direct, name).to(iterated.precision))
    wanted_GN, expected_G = direct.step(damping_G, pull_G, None)
    found_GN, found_G = iterated.step(damping_G, pull_G, None)
    tolerance = 1e-2 if single else 1e-6
    assert float((found_GN - wanted_GN).norm()) < tolerance * float(wanted_GN.norm())
    torch.testing.assert_close(found_G.double(), expected_G, rtol=tolerance, atol=0)
    # The decrease to expect is that of the linear model.
    decrease_G = 2 * (direct.slope_GN * wanted_GN).sum(1)
    decrease_G -= torch.einsum("gn,gnm,gm->g", wanted_GN, direct.matrix, wanted_GN)
    torch.testing.assert_close(expected_G, decrease_G, rtol=1e-6, atol=0)


def test_directions_are_conjugate_to_the_one_before() -> None:
    A = normal(6, 9, seed=4)
    H, b, last = A @ A.mT, normal(6, seed=5), normal(6, seed=6)
    seen: list[Tensor] = []

    def apply(x: Tensor) -> Tensor:
        seen.append(x)
        return H @ x

    zero = torch.zeros(6, dtype=torch.float64)
    x = conjugate_gradients(apply, lambda r: r, zero, b, 7, last)
    torch.testing.assert_close(x, torch.linalg.solve(H, b), atol=1e-6, rtol=1e-6)
    for direction in seen[1:]:
        assert abs(float(direction @ H @ last)) <= 1e-8 * float(direction.norm() * (H @ last).norm())


def test_problems_of_a_batch_go_on_and_rest_by_themselves() -> None:
    A = normal(2, 6, 9, seed=4)
    H, b = A @ A.mT, normal(2, 6, seed=5)
    b[1] = 0
    last = torch.stack([torch.zeros(6, dtype=torch.float64), normal(6, seed=6)])
    zero = torch.zeros_like(b)
    x = conjugate_gradients(lambda x: (H @ x[:, :, None])[:, :, 0], lambda r: r, zero, b, 40, last, batch=1)
    torch.testing.assert_close(x[0], torch.linalg.solve(H[0], b[0]), atol=1e-6, rtol=1e-6)
    assert float(x[1].abs().max()) < 1e-9


@each
@pytest.mark.parametrize("kind", ["dense", "sampled"])
def test_fits_with_many_numbers_never_rise_and_end_no_higher_than_small_ones(form: str, kind: str) -> None:
    text, shapes = FORMS[form]
    rows = normal(30 if kind == "sampled" else 200, D, seed=8)
    rows = (rows + 0.8 * rows.roll(1, 1)) * torch.logspace(0.5, -0.5, D, dtype=torch.float64)
    metric = Sampled(rows / 5, 0.1) if kind == "sampled" else Dense(rows.mT @ rows / 200)
    equation = Equation.parse(text)
    starts = [[normal(*shape, seed=20 * s + number) for number, shape in enumerate(shapes)] for s in range(9)]
    planted = compose(equation, starts.pop()).reshape(T, D)
    weight = planted / planted.norm() + 0.2 * normal(T, D, seed=9) / D**0.5

    def fitted(numbers: int) -> Fitted:
        return fits([Problem(weight, metric, starts)], equation, Effort(120, 1e-6, 8, numbers))[0]

    iterated, direct = fitted(0), fitted(10_000)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(iterated.history))
    assert iterated.error <= direct.error * 1.2  # another minimum

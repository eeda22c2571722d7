"""The step of all factors at once, against derivatives that torch takes and a dense solution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.linalg import multilinear
from rankwise.linalg.conjugate import conjugate_gradients
from rankwise.linalg.equation import Equation, compose
from rankwise.linalg.gauss_newton import Linearised
from rankwise.linalg.metric import Dense, Sampled
from rankwise.linalg.multilinear import Fitted, Solver, fit

T, C, H, W, R = 5, 4, 3, 2, 3
D = C * H * W
FORMS = {
    "cp": ("tr,cr,hr,wr->tchw", [(T, R), (C, R), (H, R), (W, R)]),
    "tucker": ("ta,cb,abhw->tchw", [(T, 3), (C, 2), (3, 2, H, W)]),
    "train": ("ta,ahb,bwd,dc->tchw", [(T, 3), (3, H, 4), (4, W, 3), (3, C)]),
    "more states than outputs": ("tr,cr,rhw->tchw", [(T, 7), (C, 7), (7, H, W)]),
}
each = pytest.mark.parametrize("form", FORMS)

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linearised(form: str) -> tuple[Solver, Linearised]:
    text, shapes = FORMS[form]
    rows = normal(200, D, seed=1)
    metric = Dense((rows + 0.5 * rows.roll(1, 1)).mT @ (rows + 0.5 * rows.roll(1, 1)) / 200)
    solver = Solver(normal(T, D, seed=2), metric, Equation.parse(text), 0.0, 8)
    factors, _ = solver.settled([normal(*shape, seed=3 + number) for number, shape in enumerate(shapes)])
    return solver, Linearised(solver, factors, torch.float64)


def dense_normal(linear: Linearised) -> Tensor:
    numbers = len(linear.slope_N)
    return torch.stack([linear._normal(unit) for unit in torch.eye(numbers, dtype=torch.float64)])


@each
def test_the_slope_is_the_derivative_of_the_error(form: str) -> None:
    solver, linear = linearised(form)

    def error(d_N: Tensor) -> Tensor:
        missed_TD = solver.W_TD - compose(solver.equation, linear.moved(d_N)).reshape(T, D)
        return (missed_TD @ solver.metric.dense() * missed_TD).sum()

    with torch.enable_grad():
        d_N = torch.zeros_like(linear.slope_N, requires_grad=True)
        (slope_N,) = torch.autograd.grad(error(d_N), d_N)
    torch.testing.assert_close(linear.slope_N, -slope_N / 2, atol=1e-8, rtol=1e-6)


@each
def test_curvature_is_that_of_the_error_with_the_best_output_factor(form: str) -> None:
    """Along any change the linear model's least error is `e - 2 s^T d + d^T H d`."""
    solver, linear = linearised(form)
    last, Sigma = linear.last, solver.metric.dense()
    V_TD = compose(solver.equation, linear.factors).reshape(T, D)
    H_NN = dense_normal(linear)
    torch.testing.assert_close(H_NN, H_NN.mT, atol=1e-9, rtol=1e-7)
    assert float(torch.linalg.eigvalsh(H_NN).min()) > -1e-8
    unit = [torch.zeros_like(factor) for factor in linear.factors]
    columns = []
    for place in range(linear.factors[last].numel()):  # what the output factor can repair
        unit[last] = torch.zeros_like(linear.factors[last])
        unit[last].view(-1)[place] = 1.0
        columns.append(compose(solver.equation, [*linear.factors[:last], unit[last], *linear.factors[last + 1 :]]))
    basis_ND = torch.stack([column.flatten() for column in columns])
    weighted_ND = (basis_ND.reshape(-1, T, D) @ Sigma).reshape(basis_ND.shape)
    for seed in range(3):
        d_N = normal(len(linear.slope_N), seed=50 + seed)
        step = 1e-6
        ahead_TD = compose(solver.equation, linear.moved(step * d_N)).reshape(T, D)
        behind_TD = compose(solver.equation, linear.moved(-step * d_N)).reshape(T, D)
        change_TD = (ahead_TD - behind_TD) / (2 * step)
        left_TD = solver.W_TD - V_TD - change_TD
        gram, right = weighted_ND @ basis_ND.mT, weighted_ND @ left_TD.flatten()
        repaired_TD = left_TD - (torch.linalg.lstsq(gram, right).solution @ basis_ND).reshape(T, D)
        least = float((repaired_TD @ Sigma * repaired_TD).sum())
        error = float(((solver.W_TD - V_TD) @ Sigma * (solver.W_TD - V_TD)).sum())
        model = error - 2 * float(linear.slope_N @ d_N) + float(d_N @ H_NN @ d_N)
        assert least == pytest.approx(model, rel=1e-5)


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


@each
@pytest.mark.parametrize("kind", ["dense", "sampled"])
def test_fits_of_many_inputs_never_rise_and_end_no_higher_than_sweeps(
    form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, shapes = FORMS[form]
    rows = normal(30 if kind == "sampled" else 200, D, seed=8)
    rows = (rows + 0.8 * rows.roll(1, 1)) * torch.logspace(0.5, -0.5, D, dtype=torch.float64)
    metric = Sampled(rows / 5, 0.1) if kind == "sampled" else Dense(rows.mT @ rows / 200)
    equation, weight = Equation.parse(text), normal(T, D, seed=9)
    start = [normal(*shape, seed=20 + number) for number, shape in enumerate(shapes)]

    def fitted(inputs: int, moves: int) -> Fitted:
        monkeypatch.setattr(multilinear, "TOGETHER_INPUTS", inputs)
        return fit(weight, metric, equation, start, moves, 0.0, 8)

    together, alternating = fitted(1, 40), fitted(D + 1, 40)
    assert all(after < before for before, after in zip(together.history, together.history[1:], strict=False))
    assert together.error <= alternating.error * 1.02

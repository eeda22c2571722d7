"""Alternating least squares in a metric, against gradients, textbook sweeps, the Tucker solver and planted kernels."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg import block as block_module
from rankwise.linalg import multilinear, tucker2
from rankwise.linalg.block import Block
from rankwise.linalg.equation import Equation, compose, contract, equalised
from rankwise.linalg.metric import Dense, Identity, Metric, Sampled
from rankwise.linalg.multilinear import fit

T, C, H, W, R = 7, 6, 3, 2, 4
D = C * H * W
# Name to equation, output modes, and the shape of every factor.
FORMS = {
    "cp": (Equation.parse("tr,cr,hr,wr->tchw"), [(T, R), (C, R), (H, R), (W, R)]),
    "cp, more terms than outputs": (Equation.parse("tr,cr,hr,wr->tchw"), [(T, 9), (C, 9), (H, 9), (W, 9)]),
    "cp, merged taps": (Equation.parse("tr,cr,rhw->tchw"), [(T, R), (C, R), (R, H, W)]),
    "tucker": (Equation.parse("ta,cb,abhw->tchw"), [(T, 3), (C, 2), (3, 2, H, W)]),
    "blocks": (Equation.parse("nta,ncb,nabhw->tchw"), [(2, T, 2), (2, C, 2), (2, 2, 2, H, W)]),
    "train": (Equation.parse("ta,ahb,bwd,dc->tchw"), [(T, 3), (3, H, 4), (4, W, 3), (3, C)]),
    "ring": (Equation.parse("atb,bcd,dhwa->tchw"), [(2, T, 3), (3, C, 2), (2, H, W, 2)]),
    "split outputs": (Equation.parse("ta,aucb,bhw->tuchw", outputs=2), [(7, 3), (3, 1, C, 4), (4, H, W)]),
}
each = pytest.mark.parametrize("form", FORMS)

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors_of(form: str, seed: int) -> list[Tensor]:
    return [normal(*shape, seed=100 * seed + number) for number, shape in enumerate(FORMS[form][1])]


def metric_of(kind: str, seed: int = 0) -> Metric:
    if kind == "identity":
        return Identity(D)
    rows = normal(20 if kind == "sampled" else 150, D, seed=seed + 7)
    rows = (rows + 0.8 * rows.roll(1, 1) + 0.4) * torch.logspace(0.5, -0.5, D, dtype=torch.float64)
    return Sampled(rows / 4, 0.1) if kind == "sampled" else Dense(rows.mT @ rows / 150)


def kernel(seed: int = 0) -> Tensor:
    return normal(T, D, seed=seed + 50)


def solver_of(form: str, kind: str, proximal: float = 0.0) -> multilinear.Solver:
    return multilinear.Solver(kernel(), metric_of(kind), FORMS[form][0], proximal, 8)


@each
@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
def test_each_block_ends_where_the_gradient_is_zero(form: str, kind: str) -> None:
    equation, solver, start = FORMS[form][0], solver_of(form, kind), factors_of(form, 1)
    metric = metric_of(kind)
    for k in range(len(start)):
        moved = list(start)
        if k == equation.output_factor:
            moved, _ = solver.settled(moved)
        else:
            moved[k] = solver.block(moved, k)
        moved[k].requires_grad_(True)
        missed = kernel() - compose(equation, moved).reshape(T, D)
        (missed @ metric.dense() * missed).sum().backward()
        slope = moved[k].grad
        assert slope is not None
        right = torch.autograd.functional.jacobian(
            lambda f, k=k: (compose(equation, [*start[:k], f, *start[k + 1 :]]).reshape(T, D) @ metric.dense()).sum(),
            start[k],
        )
        assert float(slope.norm()) < 1e-6 * max(float(right.norm()), solver.total)
        assert solver.error(moved) <= solver.error(start) + 1e-9 * solver.total


@each
@pytest.mark.parametrize("kind", ["dense", "identity"])
def test_conjugate_gradients_come_to_the_direct_solution(form: str, kind: str) -> None:
    equation, solver, start = FORMS[form][0], solver_of(form, kind, proximal=1e-6), factors_of(form, 2)
    for k in range(len(start)):
        if k == equation.output_factor:
            continue
        block = Block(solver, start, k)
        direct = solver.error([*start[:k], block.solved(), *start[k + 1 :]])
        errors = []
        for steps in (1, 3, 300):
            moved = [*start[:k], block.descended(steps), *start[k + 1 :]]
            errors.append(solver.error(moved))
        assert errors[0] <= solver.error(start)
        assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
        assert errors[-1] == pytest.approx(direct, rel=1e-4, abs=1e-9 * solver.total)


@each
def test_steps_in_single_precision_come_to_the_direct_solution(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    equation, solver, start = FORMS[form][0], solver_of(form, "dense", proximal=1e-6), factors_of(form, 2)
    for k in range(len(start)):
        if k == equation.output_factor:
            continue
        direct = solver.error([*start[:k], Block(solver, start, k).solved(), *start[k + 1 :]])
        monkeypatch.setattr(block_module, "SINGLE_PRECISION", D)
        rounded = [*start[:k], Block(solver, start, k).descended(60), *start[k + 1 :]]
        assert all(factor.dtype == torch.float64 for factor in rounded)
        assert solver.error(rounded) == pytest.approx(direct, rel=1e-3, abs=1e-6 * solver.total)


def test_the_preconditioner_is_exact_in_the_weight_metric() -> None:
    """One step is enough there: the normal matrix is a Kronecker product."""
    for form in ("cp", "cp, merged taps", "tucker", "train"):
        solver, start = solver_of(form, "identity"), factors_of(form, 3)
        for k in range(len(start)):
            if k == FORMS[form][0].output_factor:
                continue
            block = Block(solver, start, k)
            one = solver.error([*start[:k], block.descended(1), *start[k + 1 :]])
            direct = solver.error([*start[:k], block.solved(), *start[k + 1 :]])
            assert one == pytest.approx(direct, rel=1e-4, abs=1e-9 * solver.total)


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    kind=st.sampled_from(["dense", "sampled", "identity"]),
    direct=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_error_never_rises_and_is_that_of_the_factors(form: str, kind: str, direct: bool, seed: int) -> None:
    equation, metric = FORMS[form][0], metric_of(kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.setattr(multilinear, "DIRECT_ROWS", 0)
        found = fit(kernel(seed), metric, equation, factors_of(form, seed), sweeps=15)
    assert found.history == sorted(found.history, reverse=True)
    missed = kernel(seed) - compose(equation, found.factors).reshape(T, D)
    assert found.error == pytest.approx(metric.energy(missed), rel=1e-8)
    assert found.error == found.history[-1] < metric.energy(kernel(seed))


def test_a_sweep_in_the_weight_metric_is_the_textbook_one() -> None:
    """Unfolding times Khatri-Rao product, divided by the Hadamard product of the Gram matrices."""
    equation, X = FORMS["cp"][0], kernel().reshape(T, C, H, W)
    A, B, U, V = factors_of("cp", 4)
    solve = torch.linalg.solve

    def gram(*factors: Tensor) -> Tensor:
        return math.prod((f.mT @ f for f in factors), start=torch.ones(R, R, dtype=torch.float64))

    A = solve(gram(B, U, V), torch.einsum("tchw,cr,hr,wr->tr", X, B, U, V), left=False)  # the fit starts with A
    B = solve(gram(A, U, V), torch.einsum("tchw,tr,hr,wr->cr", X, A, U, V), left=False)
    U = solve(gram(A, B, V), torch.einsum("tchw,tr,cr,wr->hr", X, A, B, V), left=False)
    V = solve(gram(A, B, U), torch.einsum("tchw,tr,cr,hr->wr", X, A, B, U), left=False)
    A = solve(gram(B, U, V), torch.einsum("tchw,cr,hr,wr->tr", X, B, U, V), left=False)
    found = fit(kernel(), Identity(D), equation, factors_of("cp", 4), sweeps=1, proximal=0.0)
    torch.testing.assert_close(compose(equation, found.factors), compose(equation, [A, B, U, V]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
def test_tucker_comes_to_what_its_own_solver_finds(kind: str) -> None:
    metric = metric_of(kind)
    own = tucker2.fit(kernel().view(T, C, H * W), metric, 3, 2, sweeps=300, tolerance=1e-10)
    start = [own.A_TR, own.B_CS, own.G_RSQ.view(3, 2, H, W)]
    found = fit(kernel(), metric, FORMS["tucker"][0], start, sweeps=20)
    assert found.error == pytest.approx(own.error, rel=1e-4)
    best = min(
        fit(kernel(), metric, FORMS["tucker"][0], factors_of("tucker", s), sweeps=300, tolerance=1e-9).error
        for s in range(4)
    )
    assert best == pytest.approx(own.error, rel=0.03)


def apart(factor_NTA: Tensor) -> Tensor:
    """Orthonormal columns over all blocks."""
    N, rows, columns = factor_NTA.shape
    basis = torch.linalg.qr(factor_NTA.transpose(0, 1).reshape(rows, -1)).Q
    return basis.reshape(rows, N, columns).transpose(0, 1)


@each
@pytest.mark.parametrize("kind", ["dense", "identity"])
def test_a_planted_kernel_is_recovered(form: str, kind: str) -> None:
    equation, metric = FORMS[form][0], metric_of(kind)
    planted = factors_of(form, 9)
    if form == "blocks":  # blocks that overlap take thousands of sweeps to tell apart
        planted = [*(apart(factor) for factor in planted[:2]), planted[2]]
    V_TD = compose(equation, planted).reshape(T, D)
    errors = []
    for seed in range(5):
        errors.append(fit(V_TD, metric, equation, factors_of(form, seed), sweeps=2000, tolerance=1e-9).error)
        if errors[-1] < 1e-8 * metric.energy(V_TD):
            return
    raise AssertionError([error / metric.energy(V_TD) for error in errors])


@each
def test_equal_norms_and_the_same_product(form: str) -> None:
    equation, factors = FORMS[form][0], factors_of(form, 5)
    factors[0] = factors[0] * 1e6
    found = equalised(equation, factors)
    torch.testing.assert_close(compose(equation, found), compose(equation, factors), rtol=1e-10, atol=1e-6)
    if form.startswith("cp"):  # one bond: all norms are equal afterwards
        parts = zip(equation.factors, found, strict=True)
        norms = [factor.movedim(letters.index("r"), 0).flatten(1).norm(dim=1) for letters, factor in parts]
        for norm in norms[1:]:
            torch.testing.assert_close(norm, norms[0])


@pytest.mark.parametrize("weight, data", [(1e-6, 1.0), (1e6, 1e-6), (1.0, 1e6)])
def test_scales_do_not_matter(weight: float, data: float) -> None:
    sigma = metric_of("dense").dense()
    equation = FORMS["cp"][0]
    plain = fit(kernel(), Dense(sigma), equation, factors_of("cp", 1), sweeps=20)
    start = [factors_of("cp", 1)[0] * weight, *factors_of("cp", 1)[1:]]
    scaled = fit(kernel() * weight, Dense(sigma * data), equation, start, sweeps=20)
    torch.testing.assert_close(
        compose(equation, scaled.factors) / weight, compose(equation, plain.factors), rtol=1e-5, atol=1e-5
    )


@each
@pytest.mark.parametrize("what", ["zero weight", "zero data", "one dead bond"])
def test_degenerate_problems_stay_finite(form: str, what: str) -> None:
    metric = Dense(torch.zeros(D, D)) if what == "zero data" else metric_of("dense")
    start = factors_of(form, 6)
    if what == "one dead bond":
        start = [torch.zeros_like(start[0]), *start[1:]]
    found = fit(kernel() * (what != "zero weight"), metric, FORMS[form][0], start, sweeps=5)
    assert all(bool(torch.isfinite(factor).all()) for factor in found.factors)
    assert math.isfinite(found.error)


def test_contraction_is_einsum() -> None:
    terms = [("ab", normal(3, 4)), ("bcd", normal(4, 2, 5, seed=1)), ("de", normal(5, 3, seed=2)), ("ae", normal(3, 3))]
    for result in ("c", "ec", "abcde", ""):
        wanted = torch.einsum(",".join(letters for letters, _ in terms) + f"->{result}", *(f for _, f in terms))
        torch.testing.assert_close(contract(terms, result), wanted)
    torch.testing.assert_close(contract([("ab", normal(3, 4))], "ba"), normal(3, 4).mT)


def test_parsing() -> None:
    equation = Equation.parse("ta,aucb,bhw->tuchw", outputs=2)
    assert (equation.outputs, equation.inputs, equation.kernel) == ("tu", "chw", "tuchw")
    assert equation.output_factor is None
    assert Equation.parse("cr,tr,hr,wr->tchw").output_factor == 1

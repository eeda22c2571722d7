"""Damped least squares in a metric, against gradients, plain sweeps, the Tucker solver and planted kernels."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from benchmarks.formats_plain import alternating
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg import tucker2
from rankwise.linalg.block import Block
from rankwise.linalg.descent import Effort
from rankwise.linalg.equation import Equation, compose, contract, equalised
from rankwise.linalg.metric import Dense, Identity, Metric, Sampled
from rankwise.linalg.multilinear import Problem, fit, fits
from rankwise.linalg.problems import Problems
from rankwise.linalg.stacked import stacked

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
    "semi-tensor": (Equation.parse("ta,ausd,dcx->tuscx", outputs=2), [(7, 3), (3, 1, 6, 4), (4, 3, 2)]),
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


def problems_of(form: str, kind: str) -> tuple[Problems, list[Tensor]]:
    """A batch of one, with its factors."""
    problems = Problems(kernel()[None], stacked([metric_of(kind)]), FORMS[form][0])
    return problems, [factor[None] for factor in factors_of(form, 1)]


@each
@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
def test_the_output_factor_is_the_best_and_its_error_is_right(form: str, kind: str) -> None:
    problems, start = problems_of(form, kind)
    metric, last = metric_of(kind), problems.equation.output_factor
    settled, error_G, *_ = problems.settled(start)
    difference_G = problems.settled(start, exactly=False).error_G
    missed = kernel() - compose(problems.equation, settled).reshape(T, D)
    assert float(error_G) == pytest.approx(metric.energy(missed), rel=1e-9)
    assert float(difference_G) == pytest.approx(float(error_G), rel=1e-6)
    if last is None:
        return
    with torch.enable_grad():
        settled[last].requires_grad_(True)
        missed = kernel() - compose(problems.equation, settled).reshape(T, D)
        (missed @ metric.dense() * missed).sum().backward()
    slope = settled[last].grad
    assert slope is not None
    assert float(slope.norm() * settled[last].detach().norm()) < 1e-5 * float(problems.total_G)


@each
def test_the_preconditioner_is_the_inverse_in_the_weight_metric(form: str) -> None:
    problems, start = problems_of(form, "identity")
    for k, factor in enumerate(start):
        units = torch.eye(factor.numel(), dtype=torch.float64).reshape(-1, *factor.shape)
        made = [compose(problems.equation, [*start[:k], unit, *start[k + 1 :]]) for unit in units]
        J_ND = torch.stack([V.flatten() for V in made])
        right = normal(factor.numel(), seed=k)
        wanted = torch.linalg.solve(J_ND @ J_ND.mT + 1e-10 * torch.eye(len(J_ND), dtype=torch.float64), right)
        if torch.linalg.matrix_rank(J_ND) == len(J_ND):
            found = Block(problems, start, k).inverse(0.0, torch.float64)(right.reshape(factor.shape))
            torch.testing.assert_close(found.flatten(), wanted, rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
def test_a_fit_ends_where_the_gradient_is_zero_or_parts_cancel(form: str, kind: str) -> None:
    equation, metric = FORMS[form][0], metric_of(kind)
    found = fit(kernel(), metric, equation, factors_of(form, 1), Effort(600, 1e-13))
    with torch.enable_grad():
        factors = [factor.requires_grad_(True) for factor in found.factors]
        missed = kernel() - compose(equation, factors).reshape(T, D)
        slopes = torch.autograd.grad((missed @ metric.dense() * missed).sum(), factors)
    problems, _ = problems_of(form, kind)
    if float(problems.parts([factor.detach()[None] for factor in factors])) > 0.9:
        return
    for slope, factor in zip(slopes, factors, strict=True):
        assert float(slope.norm() * factor.detach().norm()) < 1e-3 * float(problems.total_G)


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    kind=st.sampled_from(["dense", "sampled", "identity"]),
    direct=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_error_never_rises_and_is_that_of_the_factors(form: str, kind: str, direct: bool, seed: int) -> None:
    equation, metric = FORMS[form][0], metric_of(kind, seed)
    effort = Effort(15, direct=1024 if direct else 0)
    found = fit(kernel(seed), metric, equation, factors_of(form, seed), effort)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found.history))
    missed = kernel(seed) - compose(equation, found.factors).reshape(T, D)
    assert found.error == pytest.approx(metric.energy(missed), rel=1e-8)
    assert found.error == found.history[-1] < metric.energy(kernel(seed))


def test_a_sweep_of_a_large_problem_in_the_weight_metric_is_the_textbook_one() -> None:
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
    found = fit(kernel(), Identity(D), equation, factors_of("cp", 4), Effort(1, direct=0))
    torch.testing.assert_close(compose(equation, found.factors), compose(equation, [A, B, U, V]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
def test_tucker_comes_to_what_its_own_solver_finds(kind: str) -> None:
    metric = metric_of(kind)
    own = tucker2.fit(kernel().view(T, C, H * W), metric, 3, 2, sweeps=300, tolerance=1e-10)
    start = [own.A_TR, own.B_CS, own.G_RSQ.view(3, 2, H, W)]
    found = fit(kernel(), metric, FORMS["tucker"][0], start, Effort(20))
    assert found.error == pytest.approx(own.error, rel=1e-4)
    best = min(
        fit(kernel(), metric, FORMS["tucker"][0], factors_of("tucker", s), Effort(300, 1e-9)).error for s in range(4)
    )
    assert best == pytest.approx(own.error, rel=0.03)


@each
@pytest.mark.parametrize("kind", ["dense", "identity"])
def test_a_planted_kernel_is_recovered(form: str, kind: str) -> None:
    equation, metric = FORMS[form][0], metric_of(kind)
    V_TD = compose(equation, factors_of(form, 9)).reshape(T, D)
    starts = [factors_of(form, seed) for seed in range(8)]
    found = fits([Problem(V_TD, metric, starts)], equation, Effort(200))[0]
    assert found.error < 1e-8 * metric.energy(V_TD)


@each
@pytest.mark.parametrize("kind", ["dense", "identity"])
def test_no_worse_than_plain_alternating_least_squares(form: str, kind: str) -> None:
    equation, shapes = FORMS[form]
    metric, text = metric_of(kind), ",".join(equation.factors) + "->" + equation.kernel
    starts = [[normal(*shape, seed=100 * seed + n) for n, shape in enumerate(shapes)] for seed in range(8)]
    # Noise alone has no best approximation: terms that cancel come near to it, and only the plain method lets them.
    W_TD = compose(equation, factors_of(form, 8)).reshape(T, D)
    W_TD = W_TD / W_TD.norm() + 0.2 * kernel() / kernel().norm()
    plain = min(alternating(W_TD, metric.dense(), text, start)[-1] for start in starts[:3])
    found = fits([Problem(W_TD, metric, starts)], equation, Effort(200))[0]
    assert found.error <= plain * metric.energy(W_TD) * 1.02


@each
@pytest.mark.parametrize("kind", ["dense", "sampled", "identity"])
@pytest.mark.parametrize("large", [False, True])
def test_a_batch_finds_what_its_problems_find_alone(form: str, kind: str, large: bool) -> None:
    effort = Effort(4, direct=0 if large else 1024)
    equation = FORMS[form][0]
    problems = [Problem(kernel(seed), metric_of(kind, seed), [factors_of(form, seed)]) for seed in range(3)]
    # One stops before the others, and one has nothing to do.
    problems[1] = problems[1]._replace(enough=0.8 * problems[1].metric.energy(problems[1].W_TD))
    problems.append(problems[0]._replace(W_TD=torch.zeros_like(kernel())))
    together = fits(problems, equation, effort)
    for problem, found in zip(problems, together, strict=True):
        (alone,) = fits([problem], equation, effort)
        assert len(found.history) == len(alone.history)
        torch.testing.assert_close(found.history, alone.history, rtol=1e-5, atol=1e-9)


def test_the_better_starts_go_on() -> None:
    equation, metric = FORMS["cp"][0], metric_of("dense")
    starts = [factors_of("cp", seed) for seed in range(5)]
    starts.append(fit(kernel(), metric, equation, starts[2], Effort(300, 1e-8)).factors)
    found = fits([Problem(kernel(), metric, starts)], equation, Effort(30))[0]
    assert found.error <= fit(kernel(), metric, equation, starts[5], Effort(1)).error * (1 + 1e-9)


def test_terms_that_cancel_are_held_back_and_the_fit_goes_on() -> None:
    """The limit of `(n a + b) (n a + b) (n a + b) / n - ...` has no best approximation of two terms."""
    a, b = torch.linalg.qr(normal(6, 2)).Q.T
    X = sum(torch.einsum("i,j,k->ijk", *x) for x in ((a, a, b), (a, b, a), (b, a, a)))
    equation = Equation.parse("tr,cr,hr->tch")
    start = [normal(6, 2, seed=n) for n in range(3)]
    found = fit(X.flatten(1), Identity(36), equation, start, Effort(300, 1e-6))
    parts = torch.einsum("tr,cr,hr->", *(factor.square() for factor in found.factors))
    assert float(parts) <= 100 * float(X.square().sum())
    assert found.error < 0.02 * float(X.square().sum())  # without the bound 0 is approached, and parts grow forever


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
    plain = fit(kernel(), Dense(sigma), equation, factors_of("cp", 1), Effort(20))
    start = [factors_of("cp", 1)[0] * weight, *factors_of("cp", 1)[1:]]
    scaled = fit(kernel() * weight, Dense(sigma * data), equation, start, Effort(20))
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
    found = fit(kernel() * (what != "zero weight"), metric, FORMS[form][0], start, Effort(5))
    assert all(bool(torch.isfinite(factor).all()) for factor in found.factors)
    assert math.isfinite(found.error)


def test_contraction_is_einsum() -> None:
    terms = [("ab", normal(3, 4)), ("bcd", normal(4, 2, 5, seed=1)), ("de", normal(5, 3, seed=2)), ("ae", normal(3, 3))]
    for result in ("c", "ec", "abcde", ""):
        wanted = torch.einsum(",".join(letters for letters, _ in terms) + f"->{result}", *(f for _, f in terms))
        torch.testing.assert_close(contract(terms, result), wanted)
    torch.testing.assert_close(contract([("ab", normal(3, 4))], "ba"), normal(3, 4).mT)


def test_outputs_that_no_factor_holds_together_are_read_as_inputs() -> None:
    equation = Equation.parse("xta,ausd,dcx->tucs", outputs=2)
    assert (equation.split.outputs, equation.split.inputs) == ("t", "ucs")
    for text, outputs in (("tr,cr,hr->tch", 1), ("rus,rtc->tucs", 2)):
        equation = Equation.parse(text, outputs=outputs)
        assert equation.split == equation


def test_parsing() -> None:
    equation = Equation.parse("ta,aucb,bhw->tuchw", outputs=2)
    assert (equation.outputs, equation.inputs, equation.kernel) == ("tu", "chw", "tuchw")
    assert equation.output_factor is None
    assert Equation.parse("cr,tr,hr,wr->tchw").output_factor == 1

"""Fewer values in the heads of attention: against alternating least squares, planted answers, laws."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rankwise.formats import FORMATS
from rankwise.formats.head_svd import HeadSVD
from rankwise.linalg.metric import Dense, Identity, Metric
from rankwise.network.site import Feeder, Heads, Site

T, G, H, INPUTS = 10, 2, 4, 7


def site_of(shared: int, first: int = 0, stride: int = H, others: int = 0) -> Site:
    return Site(
        name="v_proj",
        kind="heads",
        weight_shape=(T, G * shared * H),
        slots=(("v_proj",), ("o_proj",)),
        feeders=(Feeder(rows=1, inputs=INPUTS, bias=True, shared=shared, others=others),),
        heads=Heads(size=H, shared=shared, first=first, stride=stride),
    )


def problem(shared: int, seed: int = 0) -> tuple[Site, Tensor, Metric]:
    generator = torch.Generator().manual_seed(seed)
    D = G * shared * H
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64) * torch.logspace(0, -0.3, D, dtype=torch.float64)
    return site_of(shared), torch.randn(T, D, generator=generator, dtype=torch.float64), Dense(mix @ mix.mT / D)


def alternating(W_TD: Tensor, sigma_DD: Tensor, start: list[Tensor], shared: int, steps: int) -> float:
    """The error of `W ~ U B^T` by general least squares in U and B in turn; B has a block for each head."""
    root_DD = torch.linalg.cholesky(sigma_DD)
    blocks, ranks = list(start), [block.shape[1] for block in start]

    def read() -> Tensor:
        return torch.block_diag(*[block for block in blocks for _ in range(shared)])

    error = float("inf")
    for _ in range(steps):
        B_DK = read()
        U_TK = torch.linalg.lstsq((root_DD.mT @ B_DK), (root_DD.mT @ W_TD.mT), driver="gelsd").solution.mT
        for head, rank in enumerate(ranks):
            if not rank:
                continue
            blocks[head] = torch.zeros(H, rank, dtype=torch.float64)
            rest = ((W_TD - U_TK @ read().mT) @ root_DD).flatten()
            columns = []
            for at in range(H * rank):  # each number of the block by itself: what it adds to the output
                blocks[head].view(-1)[at] = 1
                only = [block if number == head else torch.zeros_like(block) for number, block in enumerate(blocks)]
                B_own = torch.block_diag(*[block for block in only for _ in range(shared)])
                columns.append(((U_TK @ B_own.mT) @ root_DD).flatten())
                blocks[head].view(-1)[at] = 0
            solved = torch.linalg.lstsq(torch.stack(columns, 1), rest[:, None], driver="gelsd").solution
            blocks[head] = solved.view(H, rank)
        left = (W_TD - U_TK @ read().mT) @ root_DD
        error = float(left.square().sum())
    return error


def blocks_of(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The axes that each head keeps."""
    values = tensors["values"]
    return [tensors["axes_GHH"][head][:, values[values // H == head] % H] for head in range(G)]


def values_of(tensors: dict[str, Tensor]) -> list[int]:
    return [block.shape[1] for block in blocks_of(tensors)]


@pytest.mark.parametrize("shared", [1, 2])
def test_near_alternating_least_squares(shared: int) -> None:
    site, W, metric = problem(shared)
    for values in (2, 4, 6):
        factors = HeadSVD().fit(site, W, [metric], (shared * values,))
        assert sum(values_of(factors.tensors)) == values
        error = metric.energy(W - factors.dense())
        best = alternating(W, metric.dense(), blocks_of(factors.tensors), shared, steps=20)
        # Axes are those of heads by themselves, and the values of these heads depend on each other.
        assert best * 0.999 <= error <= 1.5 * best
        generator = torch.Generator().manual_seed(1)
        turns = torch.linalg.qr(torch.randn(G, H, H, generator=generator, dtype=torch.float64)).Q
        other = [turn[:, : block.shape[1]] for turn, block in zip(turns, blocks_of(factors.tensors), strict=True)]
        assert error <= 1.5 * alternating(W, metric.dense(), other, shared, steps=20)
        assert factors.error == pytest.approx(error / metric.energy(W))


def test_the_best_of_all_where_heads_are_independent() -> None:
    """Then the least error is a sum of squared singular values, the smallest ones of all heads."""
    site, W, metric = problem(1, seed=8)
    mask = torch.block_diag(*[torch.ones(H, H, dtype=torch.float64)] * G)
    apart = Dense(metric.dense() * mask)
    roots = torch.linalg.cholesky(apart.dense())
    values = torch.cat([torch.linalg.svdvals((W @ roots)[:, head * H : (head + 1) * H]) for head in range(G)])
    squares = values.square().sort().values
    for kept in range(1, G * H):
        error = apart.energy(W - HeadSVD().fit(site, W, [apart], (kept,)).dense())
        assert error == pytest.approx(float(squares[: G * H - kept].sum()), rel=1e-3)


@pytest.mark.parametrize("shared", [1, 2])
def test_exact_at_full_size_and_more_is_never_worse(shared: int) -> None:
    site, W, metric = problem(shared, seed=2)
    fits = {kept: HeadSVD().fit(site, W, [metric], (kept,)) for kept in range(shared, W.shape[1] + 1, shared)}
    errors = [fit.error for fit in fits.values()]
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(errors))
    torch.testing.assert_close(fits[W.shape[1]].dense(), W)
    curve = dict(HeadSVD().curve(site, W, [metric], 1))
    assert curve.keys() == {(kept,) for kept in fits}
    for (kept,), error in curve.items():
        assert fits[kept].error == pytest.approx(error, rel=0.02, abs=1e-3)  # of the damping


@pytest.mark.parametrize("metric", ["dense", "identity"])
def test_heads_of_lower_rank_are_recovered(metric: str) -> None:
    """A planted answer: the outputs depend on two directions of the values of each head."""
    site, _, dense = problem(2, seed=3)
    generator = torch.Generator().manual_seed(4)
    B_GHK = torch.randn(G, H, 2, generator=generator, dtype=torch.float64)
    W = torch.einsum(
        "tgsk,ghk->tgsh", torch.randn(T, G, 2, 2, generator=generator, dtype=torch.float64), B_GHK
    ).flatten(1)
    used = dense if metric == "dense" else Identity(W.shape[1])
    factors = HeadSVD().fit(site, W, [used], (2 * 2 * G,))
    assert values_of(factors.tensors) == [2, 2]
    torch.testing.assert_close(factors.dense(), W, atol=1e-3, rtol=1e-3)
    assert factors.error < 1e-6
    assert HeadSVD().fit(site, W, [used], (2,)).error > 1e-3


def test_a_head_that_no_output_reads_leaves_first() -> None:
    site, W, metric = problem(1, seed=5)
    W = W.clone()
    W[:, :H] = 0
    factors = HeadSVD().fit(site, W, [metric], (H,))
    assert values_of(factors.tensors) == [0, H]
    torch.testing.assert_close(factors.dense(), W)


@pytest.mark.parametrize("first, stride, others", [(0, H, 0), (2 * G * H, H, 2 * G * H), (2 * H, 3 * H, 2 * G * H)])
def test_rows_of_the_feeder(first: int, stride: int, others: int) -> None:
    """Apart, in one layer behind queries and keys, and side by side with those of each head."""
    site = site_of(1, first, stride, others)
    _, W, metric = problem(1, seed=6)
    rows = G * H + others
    generator = torch.Generator().manual_seed(7)
    W_v, b_v = torch.randn(rows, INPUTS, generator=generator), torch.randn(rows, generator=generator)
    factors = HeadSVD().fit(site, W, [metric], (G * H,))
    places, weight, bias = HeadSVD().rows(factors, W_v, b_v)
    assert torch.equal(places, torch.arange(rows))
    assert bias is not None
    value = torch.tensor([first + stride * head + at for head in range(G) for at in range(H)])
    kept = torch.ones(rows, dtype=torch.bool)
    kept[value] = False
    assert torch.equal(weight[kept].float(), W_v[kept])
    # With all values, the output projection in the axes undoes the turn.
    torch.testing.assert_close(factors.tensors["U_1TK"][0] @ weight[value], W @ W_v[value].double())
    torch.testing.assert_close(factors.tensors["U_1TK"][0] @ bias[value], W @ b_v[value].double())
    fewer = HeadSVD().fit(site, W, [metric], (3,))
    places, weight, _ = HeadSVD().rows(fewer, W_v, None)
    assert len(places) == len(weight) == others + 3 == site.feeders[0].left(3)


def test_numbers_that_share_a_value_stay_together() -> None:
    site, W, metric = problem(2)
    with pytest.raises(ValueError, match="keep a multiple of 2"):
        HeadSVD().fit(site, W, [metric], (3,))


def test_it_refuses_single_layers_and_hidden_units() -> None:
    alone = Site(name="fc", kind="linear", weight_shape=(4, 6))
    assert "attention heads as one site (joint=True)" in str(HeadSVD().refuses(alone))
    hidden = Site(name="up", kind="hidden", weight_shape=(4, 6), feeders=(Feeder(rows=1, inputs=4, bias=True),))
    assert "use nystrom" in str(HeadSVD().refuses(hidden))
    for name, format in FORMATS.items():
        reason = format.refuses(site_of(2))
        assert (reason is None) == (name == "head_svd")
        assert reason is None or "use head_svd" in reason

"""Embeddings: fitted to the words that the data has, from statistics, sequentially and from the weight alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.factorisation_nets import Words, tokens
from support.nets import chains, make, outputs, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise import Statistics
from rankwise.statistics.counts import Lookups


def frequencies(batches: list[Tensor]) -> Tensor:
    return torch.bincount(torch.cat(batches).flatten(), minlength=60).double() / 1536


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make(Words)


@pytest.fixture(scope="module")
def stats(model: nn.Module) -> Statistics:
    return rw.collect(model, tokens())


def test_statistics_are_the_counts_of_the_words(model: nn.Module, stats: Statistics, tmp_path: Path) -> None:
    assert stats["words"].count == 32 * 12 * 4
    torch.testing.assert_close(stats["words"].mean_GD[0], frequencies(tokens()), rtol=1e-12, atol=0)
    halves = [rw.collect(model, tokens()[:1]), rw.collect(model, tokens()[1:])]
    merged = halves[0].merge(halves[1])["words"]
    torch.testing.assert_close(merged.mean_GD, stats["words"].mean_GD, rtol=1e-12, atol=1e-15)
    loaded = Statistics.load(stats.save(tmp_path / "stats"))["words"]
    assert loaded.one_hot
    assert torch.equal(loaded.mean_GD, stats["words"].mean_GD)
    with pytest.raises(ValueError, match="no index was seen"):
        Lookups(3).moments()


@pytest.mark.parametrize("how", ["one-shot", "sequential", "weight"])
def test_the_fit_is_the_best_for_the_frequencies(how: str, model: Any, stats: Statistics) -> None:
    """Against the singular values of the table, each row scaled by the root of its weight."""
    plan = plan_of(stats.sites, {"words": ("svd", (4,))}, "weight" if how == "weight" else "input")
    with unchanged(model):
        small = rw.factorise(model, plan, stats, data=tokens() if how == "sequential" else None)
    chain = small.words
    assert [type(layer) for layer in chain] == [nn.Embedding, nn.Linear]
    assert (chain.bias, chain.padding_idx, chain[0].padding_idx) == (None, 0, 0)
    table = model.words.weight.detach().double()
    weights = torch.ones(60).double() if how == "weight" else stats["words"].metrics()[0].dense().diagonal()
    values = torch.linalg.svdvals(weights.sqrt()[:, None] * table)
    missed = (weights[:, None] * (table - chain.weight.detach()).square()).sum()
    assert float(missed) == pytest.approx(float(values[4:].square().sum()), rel=1e-4)
    assert float(chain(torch.tensor([0])).detach().abs().max()) == 0.0  # the row of the padding


def test_words_that_come_often_are_kept_better(model: Any, stats: Statistics) -> None:
    errors = []
    for metric in ("input", "weight"):
        small = rw.factorise(model, plan_of(stats.sites, {"words": ("svd", (4,))}, metric), stats)
        missed = (model.words.weight - small.words.weight).detach().square().sum(1).double()
        errors.append(float(frequencies(tokens()) @ missed))
    assert errors[0] < 0.9 * errors[1]


def test_full_rank_changes_nothing(model: nn.Module, stats: Statistics) -> None:
    rows = {name: ("svd", rw.FORMATS["svd"].limits(stats.sites[name])) for name in ("words", "places")}
    small = rw.factorise(model, plan_of(stats.sites, rows), stats)
    torch.testing.assert_close(outputs(small, tokens()), outputs(model, tokens()), rtol=1e-4, atol=1e-5)


def test_a_budget_of_parameters_may_factorise_it_and_one_of_macs_does_not(model: Any, stats: Statistics) -> None:
    by_params = rw.choose(model, stats, keep={"params": 0.55}, include=["*", "words", "head"])
    small = rw.factorise(model, by_params, stats)
    assert "words" in chains(small)
    assert sum(p.numel() for p in small.parameters()) == by_params.planned["params"]
    assert rw.find(small, tokens()[0][:1]).total_macs == by_params.planned["macs"]
    (row,) = [row for row in by_params.rows if row.site == "words"]
    assert "of its parameters" in row.why
    by_macs = rw.choose(model, stats, keep={"macs": 0.55}, include=["*", "words", "head"])
    assert {row.site for row in by_macs.factorised} <= {"hidden", "head"}


@pytest.mark.parametrize("format", rw.FORMATS.values(), ids=rw.FORMATS)
def test_formats_without_a_lookup_refuse_it(format: rw.Format, stats: Statistics) -> None:
    reason = format.refuses(stats.sites["words"])
    if format.name == "svd":
        assert reason is None
    else:
        assert str(reason).endswith("use svd")


def test_artifact_and_training(model: Any, stats: Statistics, tmp_path: Path) -> None:
    small = rw.factorise(model, plan_of(stats.sites, {"words": ("svd", (4,)), "head": ("svd", (5,))}), stats)
    rw.save(small, tmp_path / "out")
    loaded = rw.load(Words(), tmp_path / "out")
    assert torch.equal(outputs(loaded, tokens()), outputs(small, tokens()))
    loaded.train()(tokens()[0]).square().mean().backward()
    assert float(loaded.words[0].weight.grad.abs().sum()) > 0
    assert float(loaded.words[0].weight.grad[0].abs().max()) == 0.0
    path = rw.export.onnx(small, tokens()[0][:2], tmp_path / "words.onnx")
    assert path.stat().st_size > 0

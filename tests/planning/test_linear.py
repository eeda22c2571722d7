"""A budget of the layers that may be factorised: embeddings and heads of language models do not count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.planning.prices import recount


class Words(nn.Module):
    """A vocabulary of 500 words around two small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.one, self.two = nn.Embedding(500, 16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 500, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.words(tokens)).relu()))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Words().eval()


BATCHES = [torch.randint(500, (8, 12), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("keep", [0.9, 0.7])
def test_shares_are_of_the_layers_alone(model: nn.Module, keep: float) -> None:
    plan = rw.choose(model, rw.collect(model, BATCHES), keep={"linear": keep})
    inner = 16 * 40 + 40 + 40 * 16 + 16
    assert plan.dense["linear"] == inner
    assert keep * inner * 0.9 < plan.planned["linear"] <= keep * inner
    assert plan.planned["params"] - plan.planned["linear"] == plan.dense["params"] - inner
    small = rw.factorise(model, plan, rw.collect(model, BATCHES))
    counted = sum(parameter.numel() for part in (small.one, small.two) for parameter in part.parameters())
    assert counted == plan.planned["linear"]


def test_other_plans_do_not_hold_it(model: nn.Module) -> None:
    plan = rw.choose(model, rw.collect(model, BATCHES), keep={"params": 0.98})
    assert plan.dense.keys() == plan.planned.keys() == {"params", "macs", "bytes"}


def test_an_edited_plan_is_counted_again(model: nn.Module) -> None:
    stats = rw.collect(model, BATCHES)
    plan = rw.choose(model, stats, keep={"linear": 0.8})
    again = recount(model, plan, stats.sites)
    assert (again.dense, again.planned) == (plan.dense, plan.planned)


def test_a_budget_that_cannot_be_met_says_so(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"params of the layers that may be factorised .* cannot be met"):
        rw.choose(model, rw.collect(model, BATCHES), keep={"linear": 0.01})
    with pytest.raises(ValueError, match=r'write keep=\{"linear": 0.8\}'):
        rw.choose(model, rw.find(model, BATCHES[0]), keep={"linear": 80}, metric="weight")


def test_with_other_budgets_all_are_met(model: nn.Module) -> None:
    plan = rw.choose(model, rw.collect(model, BATCHES), keep={"linear": 0.9, "macs": 0.98})
    assert plan.planned["linear"] <= 0.9 * plan.dense["linear"]
    assert plan.planned["macs"] <= 0.98 * plan.dense["macs"]

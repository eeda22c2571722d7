"""Perplexity against a loop over tokens, with padding, and where it is measured."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rankwise.evaluate import Outputs, measure, perplexity, predicts_next


class NextForCausalLM(nn.Module):
    """Scores of 7 words from the word alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table(input_ids))


def test_as_a_loop_over_tokens_says() -> None:
    model, tokens = NextForCausalLM(), torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(1))
    surprise = [
        -float(model.table.weight[row[place - 1]].log_softmax(0)[row[place]]) for row in tokens for place in range(1, 9)
    ]
    expected = math.exp(sum(surprise) / len(surprise))
    batches = [{"input_ids": tokens[:1]}, {"input_ids": tokens[1:]}]
    assert perplexity(model, batches) == pytest.approx(expected, rel=1e-6)
    assert perplexity(model, [(batch, None) for batch in batches]) == pytest.approx(expected, rel=1e-6)


def test_a_network_that_knows_nothing_is_as_surprised_as_by_dice() -> None:
    model = NextForCausalLM()
    nn.init.zeros_(model.table.weight)
    assert perplexity(model, [{"input_ids": torch.arange(6)[None]}]) == pytest.approx(7.0, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(side: str) -> None:
    model, tokens = NextForCausalLM(), torch.tensor([[1, 2, 3, 4]])
    pad, ones = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)
    order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
    padded = {"input_ids": torch.cat(order(tokens, pad), 1), "attention_mask": torch.cat(order(ones, pad), 1)}
    assert perplexity(model, [padded]) == pytest.approx(perplexity(model, [{"input_ids": tokens}]))


def test_what_has_no_next_token_is_refused() -> None:
    model = NextForCausalLM()
    with pytest.raises(ValueError, match="batch 0 has no input_ids"):
        perplexity(model, [torch.zeros(1, 4)])
    with pytest.raises(ValueError, match="no samples"):
        perplexity(model, [{"input_ids": torch.tensor([[1]])}])


def test_where_it_is_measured() -> None:
    batch = {"input_ids": torch.tensor([[1, 2]])}
    assert predicts_next(NextForCausalLM(), batch)
    assert not predicts_next(nn.Embedding(7, 7), batch)
    assert not predicts_next(NextForCausalLM(), {"pixel_values": torch.zeros(1)})


def test_as_a_measure_lower_is_better() -> None:
    model, batches = NextForCausalLM(), [{"input_ids": torch.tensor([[1, 2, 3]])}]
    judge = measure("perplexity", Outputs(kind="scores", why=""))
    assert judge.direction == "lower is better"
    assert judge.reference(model, batches) == pytest.approx(perplexity(model, batches))
    assert judge.lost(12.0, reference=10.0) == pytest.approx(2.0)

"""How language models are judged: windows, intervals, choices, neighbours, speed and the cache, by brute force."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.evaluate import (
    Question,
    Surprise,
    cache_bytes,
    embedded,
    generation,
    mean_interval,
    most_sensitive,
    multiple_choice,
    perplexity,
    perplexity_ratio,
    regularised_perplexity,
    similarity,
    surprise,
    windows,
)

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = 7


class Recent(nn.Module):
    """Scores of the next word from the sum of all words in the window so far: it matters where a window begins."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS).requires_grad_(False)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table(input_ids).cumsum(1))


def text(length: int, seed: int = 1) -> Tensor:
    return torch.randint(WORDS, (length,), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Recent, tokens: list[int], context: int, stride: int, start: int | None) -> tuple[float, int]:
    """Nats and tokens: window after window, token after token."""
    size, nats, done, count, begin = context - (start is not None), 0.0, 0, 0, 0
    while True:
        row = tokens[begin : begin + size]
        for place, token in enumerate(row):
            before = ([] if start is None else [start]) + row[:place]
            if begin + place >= done and before:
                scores = sum(model.table.weight[word] for word in before)
                nats -= float(scores.log_softmax(0)[token])
                count += 1
        done = begin + len(row)
        if done >= len(tokens):
            return nats, count
        begin += stride


@pytest.mark.parametrize("start", [None, 3])
@pytest.mark.parametrize("length, context, stride", [(23, 6, 3), (23, 6, 1), (24, 6, 5), (4, 9, 2), (10, 5, 4)])
def test_windows_as_a_loop_over_tokens_says(length: int, context: int, stride: int, start: int | None) -> None:
    model, tokens = Recent(), text(length)
    found = surprise(model, windows(tokens, context=context, stride=stride, start=start))
    nats, count = by_hand(model, tokens.tolist(), context, stride, start)
    assert found.tokens == count == length - (start is None)
    assert found.perplexity == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_windows_that_do_not_overlap_are_rows() -> None:
    model, tokens = Recent(), text(24)
    rows = [{"input_ids": tokens.view(4, 6)}]
    found = surprise(model, windows(tokens, context=6, stride=6))
    assert found.perplexity == pytest.approx(perplexity(model, rows), rel=1e-6)
    assert found.tokens == 20


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"context": 1}, "context is 1"),
        ({"context": 4, "stride": 5}, "stride is 5"),
        ({"context": 4, "stride": 4, "start": 0}, "from 1 to the 3 tokens"),
    ],
)
def test_windows_of_no_size(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(windows(text(9), **sizes))
    with pytest.raises(ValueError, match="the text has 1 tokens"):
        list(windows([1], context=4))


def test_the_interval_is_that_of_all_draws() -> None:
    """Three rows have 27 draws, all equally likely."""
    sums, counts = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([2.0, 3.0, 1.0])
    every = [
        float(sums[list(picked)].sum() / counts[list(picked)].sum()) for picked in itertools.product(range(3), repeat=3)
    ]
    found = mean_interval(sums, counts, draws=200_000)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.tensor(every, dtype=torch.float64).repeat(1000).quantile(ends)
    assert found.value == pytest.approx(8 / 6)
    assert (found.low, found.high) == (pytest.approx(float(low), rel=1e-6), pytest.approx(float(high), rel=1e-6))


def test_pairs_of_rows_tell_more_than_each_network_alone() -> None:
    hard = torch.linspace(100, 300, 12)
    dense = Surprise(nats_N=hard, tokens_N=torch.full((12,), 50.0))
    small = Surprise(nats_N=hard * 1.01 + 2, tokens_N=torch.full((12,), 50.0))
    found = perplexity_ratio(small, dense)
    assert found.value == pytest.approx(small.perplexity / dense.perplexity)
    assert found.low < found.value < found.high < 1.2 * found.low
    alone = mean_interval(hard, dense.tokens_N)
    assert math.exp(alone.high - alone.low) > 2
    with pytest.raises(ValueError, match="different rows"):
        perplexity_ratio(small, Surprise(nats_N=hard, tokens_N=torch.full((12,), 49.0)))
    with pytest.raises(ValueError, match="at least two rows"):
        mean_interval(hard[:1], hard[:1])


def encode(words: str) -> list[int]:
    """A token for each word; of the alphabet, modulo the vocabulary."""
    return [sum(map(ord, word)) % WORDS for word in words.split()]


def test_choices_as_a_loop_says() -> None:
    model = Recent()
    names = ("ab cd", "e", "fgh ij kl mno")
    questions = [Question(context=f"q {word} ", choices=names, answer=at % 3) for at, word in enumerate("uvwxyz")]
    raw, by_length = [], []
    for question in questions:
        logs = []
        for choice in question.choices:
            before, own = encode(question.context), encode(choice)
            logs.append(0.0)
            for place, token in enumerate(own):
                scores = sum(model.table.weight[word] for word in [*before, *own[:place]])
                logs[-1] += float(scores.log_softmax(0)[token])
        raw.append(logs.index(max(logs)) == question.answer)
        shares = [log / len(choice) for log, choice in zip(logs, question.choices, strict=True)]
        by_length.append(shares.index(max(shares)) == question.answer)
    found = multiple_choice(model, questions, encode)
    assert found.right_Q.tolist() == [float(each) for each in raw]
    assert found.right_by_length_Q.tolist() == [float(each) for each in by_length]
    assert raw != by_length
    assert found.accuracy.value == pytest.approx(100 * sum(raw) / 6)


def test_long_contexts_lose_their_beginning() -> None:
    model = Recent()
    long = Question(context="a b c d e f", choices=("g", "h i"), answer=0)
    short = Question(context="e f", choices=("g", "h i"), answer=0)
    assert torch.equal(
        multiple_choice(model, [long], encode, most=3).right_Q, multiple_choice(model, [short], encode, most=3).right_Q
    )
    with pytest.raises(ValueError, match="question 0: the choice 'h i' has 2 tokens, the network takes 2"):
        multiple_choice(model, [long], encode, most=2)


def test_questions_that_are_none() -> None:
    with pytest.raises(ValueError, match="the answer is 2; it must be from 0 to 1"):
        Question(context="a", choices=("b", "c"), answer=2)
    with pytest.raises(ValueError, match="at least two"):
        Question(context="a", choices=("b",), answer=0)
    with pytest.raises(ValueError, match="a choice is empty"):
        Question(context="a", choices=("b", " "), answer=0)
    with pytest.raises(ValueError, match="question 0: no token comes before"):
        multiple_choice(Recent(), [Question(context=" ", choices=("b", "c"), answer=0)], encode)
    with pytest.raises(ValueError, match="no questions"):
        multiple_choice(Recent(), [], encode)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(WORDS, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.table(input_ids)}


def test_padding_is_not_embedded() -> None:
    model, tokens = Hidden(), text(6).view(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = embedded(model, [{"input_ids": tokens, "attention_mask": mask}])
    by_hand = [model.table(tokens[0]).mean(0), model.table(tokens[1, :2]).mean(0)]
    torch.testing.assert_close(found, torch.stack(by_hand).double())


def test_neighbours_as_a_loop_says() -> None:
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(9, 4, generator=generator)
    small = dense + 0.5 * torch.randn(9, 4, generator=generator)

    def nearest(rows: Tensor, own: int) -> int:
        near = {
            other: float(rows[own] @ rows[other] / rows[own].norm() / rows[other].norm())
            for other in range(9)
            if other != own
        }
        return max(near, key=near.__getitem__)

    found = similarity(dense, small)
    kept = [nearest(dense, own) == nearest(small, own) for own in range(9)]
    assert found.kept_N.tolist() == [float(each) for each in kept]
    assert 0 < sum(kept) < 9
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(dense, small, strict=True)]
    assert found.cosine.value == pytest.approx(sum(cosines) / 9, rel=1e-5)
    with pytest.raises(ValueError, match="at least three"):
        similarity(dense[:2], small[:2])


def llama(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **sizes, **options)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def test_the_cache_is_counted_and_writing_is_greedy() -> None:
    model, prompt = llama(), text(10).view(2, 5)
    a_token = 2 * 2 * 2 * 6 * 4  # layers, keys and values, heads, their size, bytes
    assert cache_bytes(model, prompt) == 2 * 5 * a_token
    found = generation({"a": model, "b": model}, prompt, new=3, rounds=1)
    assert list(found) == ["a", "b"]
    assert found["a"].cache_bytes == 2 * (5 + 3) * a_token
    assert (found["a"].prefill.tokens, found["a"].decode.tokens) == (10, 6)
    assert found["a"].decode.per_second > 0
    assert "noise" in str(found["a"].faster(found["b"])[0])


def test_what_does_not_generate() -> None:
    model = llama()
    with pytest.raises(ValueError, match="rows x tokens"):
        generation({"a": model}, text(5))
    with pytest.raises(ValueError, match="new is 0"):
        generation({"a": model}, text(5)[None], new=0)
    with pytest.raises(ValueError, match="models is empty"):
        generation({}, text(5)[None])


def test_regularised_as_a_loop_says() -> None:
    dense, small = Recent(), Recent(seed=1)
    rows = [{"input_ids": text(8).view(2, 4)}, {"input_ids": text(4, seed=5)[None]}]
    apart = 0.0
    for batch in rows:
        for row in batch["input_ids"]:
            for place in range(4):
                p, q = (sum(net.table.weight[word] for word in row[: place + 1]).softmax(0) for net in (dense, small))
                apart += float((q * (q / p).log()).sum())
    measure = regularised_perplexity(dense, weight=0.5)
    assert measure(small, dense, rows) == pytest.approx(perplexity(small, rows) + 0.5 * apart / 3, rel=1e-4)
    assert measure.reference(dense, rows) == pytest.approx(perplexity(dense, rows), rel=1e-5)
    assert measure.direction == "lower is better"


def test_rows_that_vary_most() -> None:
    networks, rows = [Recent(seed) for seed in range(4)], [{"input_ids": text(30).view(5, 6)}]
    values = [[perplexity(net, [{"input_ids": row[None]}]) for row in rows[0]["input_ids"]] for net in networks]
    variances = [torch.tensor([own[row] for own in values]).var() for row in range(5)]
    expected = sorted(sorted(range(5), key=lambda row: -float(variances[row]))[:2])
    assert most_sensitive(iter(networks), rows, 2).tolist() == expected
    with pytest.raises(ValueError, match="1 networks say nothing"):
        most_sensitive(networks[:1], rows, 2)
    with pytest.raises(ValueError, match="from 1 to the 5 rows"):
        most_sensitive(networks, rows, 6)

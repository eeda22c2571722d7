from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.batches import Batches
from rankwise.running.example import with_example


class Body(nn.Module):
    """Two layers and a way to call them."""

    def __init__(self, forward: Callable[..., Tensor], inputs: int = 48) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, 48), nn.Linear(48, 8)
        self.way = forward

    def forward(self, *given: Any) -> Tensor:
        return self.way(self, *given)


def graph(net: Body, x: Tensor, adjacency: Tensor) -> Tensor:
    return adjacency @ net.second(F.relu(adjacency @ net.first(x)))


def edges(net: Body, x: Tensor, index: Tensor) -> Tensor:
    hidden = F.relu(net.first(x))
    return net.second(torch.zeros_like(hidden).index_add(0, index[1], hidden[index[0]]))


def pairs(net: Body, x: Tensor) -> Tensor:
    return net.second(F.relu(net.first(x)).view(-1, 2, 48).mean(1))


def every_second(net: Body, x: Tensor) -> Tensor:
    return net.second(F.relu(net.first(x[0::2])) - F.relu(net.first(x[1::2])))


def centred(net: Body, x: Tensor) -> Tensor:
    hidden = F.relu(net.first(x))
    return net.second(hidden - hidden.mean(0))


def spread(net: Body, x: Tensor) -> Tensor:
    return net.second(F.relu(net.first(x)) / x.std(0).norm())


def experts(net: Body, x: Tensor) -> Tensor:
    left = x[:, 0] > 0
    y = x.new_zeros(len(x), 48)
    if left.any():
        y[left] = net.first(x[left])
    return y + F.pad(net.second(x[~left]), (0, 40)).mean()


def rows(count: int = 8) -> Tensor:
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(0))


WHOLE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "batch statistics of vectors": (
        lambda: nn.Sequential(nn.Linear(48, 48), nn.BatchNorm1d(48, track_running_stats=False), nn.Linear(48, 8)),
        rows(),
    ),
    "batch statistics of pictures": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 8, 3)),
        torch.randn(4, 3, 8, 8) * torch.arange(1, 5).view(4, 1, 1, 1),
    ),
    "graph": (lambda: Body(graph), (rows(20), torch.rand(20, 20))),
    "edges": (lambda: Body(edges), (rows(20), torch.randint(0, 20, (2, 60)))),
    "pairs": (lambda: Body(pairs), rows()),
    "two halves": (lambda: Body(every_second), rows()),
    "centred over the batch": (lambda: Body(centred), rows()),
    "not finite for one": (lambda: Body(spread), rows()),
    "experts": (lambda: Body(experts), rows()),
}


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_batch_where_one_sample_does_not_do(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, batch = WHOLE[case]
    torch.manual_seed(0)
    model = build().eval()
    with caplog.at_level(logging.INFO, "rankwise"):
        example, _ = with_example(model, Batches.of([batch]))
    assert example is batch
    assert "the example is the whole first batch" in caplog.text
    for method in ("one-shot", "sequential"):
        small, report = rw.compress(model, [batch] * 3, keep={"params": 0.7}, formats="svd", method=method)
        assert report.dense.macs == rw.find(model, batch).total_macs
        assert report.compressed.params <= 0.7 * report.dense.params
        assert rw.find(small, batch).total_macs == report.plan.planned["macs"]


def test_of_a_list_of_pictures_the_first_one_is_the_example() -> None:
    torch.manual_seed(0)
    model = Body(lambda net, images: net.second(net.first(torch.stack(images).flatten(1)))).eval()
    batch = ([torch.randn(3, 4, 4) for _ in range(4)],)
    example, batches = with_example(model, Batches.of([batch]))
    assert [image.shape for image in example[0]] == [(3, 4, 4)]
    assert batches.samples == 4
    for method in ("one-shot", "sequential"):
        small, report = rw.compress(model, [batch] * 3, keep={"params": 0.7}, formats="svd", method=method)
        assert report.dense.macs == rw.find(model, example).total_macs
        assert rw.find(small, example).total_macs == report.plan.planned["macs"]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.randn_like(x))


ONE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "vectors": (lambda: nn.Linear(48, 8), rows()),
    "noise": (Noisy, rows()),
    "prototypes": (lambda: Body(lambda net, x, p: net.first(x) @ p.T), (rows(16), rows())),
    "every pair of samples": (lambda: Body(lambda net, x, p: net.first(x) @ net.first(p).T), (rows(), rows())),
    "tokens in one row": (lambda: Body(lambda net, x: net.second(net.first(x)).flatten()), torch.randn(4, 5, 48)),
    "a scalar beside": (lambda: Body(lambda net, x: (net.second(net.first(x)), x.square().sum())), rows()),
}


@pytest.mark.parametrize("case", ONE)
def test_one_sample_where_it_does(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, batch = ONE[case]
    with caplog.at_level(logging.INFO, "rankwise"):
        example, batches = with_example(build().eval(), Batches.of([batch]))
    first = example[0] if isinstance(example, tuple) else example
    assert len(first) == 1
    assert batches.samples == len(batch[0] if isinstance(batch, tuple) else batch)
    assert not caplog.records


def test_a_batch_of_one_is_the_example() -> None:
    example, _ = with_example(nn.Sequential(nn.Linear(48, 8)), Batches.of([rows(1)]))
    assert example.shape == (1, 48)


# ---- time first


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool, permute: bool = False) -> None:
        super().__init__()
        self.read, self.head = nn.LSTM(16, 24, batch_first=batch_first), nn.Linear(24, 24)
        self.permute = permute

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x.transpose(0, 1) if self.permute else x)[0])


class Tokens(nn.Module):
    """A transformer with time first, from token numbers, with a mask of T x T."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(self.table(x), mask)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(7)
TIME: dict[str, tuple[Callable[[], nn.Module], Any, tuple[int, ...], int]] = {
    "time first": (lambda: Recurrent(False), torch.randn(7, 3, 16), (7, 1, 16), 3),
    "as many steps as samples": (lambda: Recurrent(False), torch.randn(5, 5, 16), (5, 1, 16), 5),
    "time first, one sample": (lambda: Recurrent(False), torch.randn(7, 1, 16), (7, 1, 16), 1),
    "samples first": (lambda: Recurrent(True), torch.randn(7, 3, 16), (1, 3, 16), 7),
    "turned inside": (lambda: Recurrent(False, permute=True), torch.randn(7, 3, 16), (1, 3, 16), 7),
    "turned inside, as many": (lambda: Recurrent(False, permute=True), torch.randn(5, 5, 16), (1, 5, 16), 5),
    "tokens and mask": (Tokens, (torch.randint(0, 20, (7, 3)), CAUSAL), (7, 1), 3),
}


@pytest.mark.parametrize("case", TIME)
def test_samples_are_found_where_time_comes_first(case: str) -> None:
    build, batch, shape, samples = TIME[case]
    model = build().eval()
    example, batches = with_example(model, Batches.of([batch, batch]))
    assert (example[0] if isinstance(batch, tuple) else example).shape == shape
    assert batches.samples == 2 * samples
    stats = rw.collect(model, [batch, batch])
    assert stats.samples == 2 * samples
    assert stats.sites.total_macs == rw.find(model, example).total_macs
    assert rw.find(model, batch).total_macs == samples * rw.find(model, example).total_macs


def test_an_example_says_where_the_samples_are() -> None:
    model = nn.Sequential(nn.Linear(16, 8))  # nothing in it says that time comes first
    batch = torch.randn(7, 3, 16)
    assert rw.collect(model, [batch]).samples == 7
    stats = rw.collect(model, [batch], example=batch[:, :1])
    assert stats.samples == 3
    assert stats.sites.total_macs == 7 * 16 * 8


# ---- example=


def test_an_example_of_the_users_own_is_what_is_counted() -> None:
    model = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))
    data = [rows(), rows()]
    for method in ("one-shot", "sequential"):
        _, report = rw.compress(model, data, keep={"macs": 0.6}, method=method, example=data[0])
        assert report.dense.macs == 8 * (48 * 48 + 48 * 8)
    plan = rw.choose(model, rw.find(model, data[0]), keep={"macs": 0.6}, metric="weight")
    assert rw.find(rw.factorise(model, plan, data=data, example=data[0]), data[0]).total_macs == plan.planned["macs"]


def test_the_former_name_works() -> None:
    model, data = nn.Sequential(nn.Linear(48, 8)), [rows()]
    assert rw.find(model, example_input=data[0]).total_macs == 8 * 48 * 8
    assert rw.collect(model, data, example_input=data[0]).sites.total_macs == 8 * 48 * 8
    with pytest.raises(ValueError, match="former name of example="):
        rw.collect(model, data, example_input=data[0], example=data[0])  # type: ignore[call-arg]


def test_a_network_that_takes_no_batch_says_why() -> None:
    with pytest.raises(ValueError, match=r"rejects the example batch \(8, 48\).*cannot be multiplied"):
        rw.collect(nn.Sequential(nn.Linear(5, 8)), [rows()])

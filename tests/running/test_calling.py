"""Networks that write into their inputs: the user's batches stay as they are, results are those of fresh batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.calling import apart, call
from rankwise.running.pristine import pristine


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Scales(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.body(x)


class Assigns(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 3] = x[:, 3].abs()
        return self.body(x)


class WritesAfterwards(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        x.sub_(1)
        return y + x[:, :6]


class Activates(Plain):
    """The first layer is an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.LeakyReLU(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.gate(x))


class WritesIntoParts(Plain):
    def forward(self, parts: dict[str, Tensor], pair: list[Tensor]) -> Tensor:
        parts["x"].add_(1)
        pair[0].mul_(0.5)
        return self.body(parts["x"] + pair[0])


class AddsNoise(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(torch.randn_like(x) * 0.1)
        return self.body(x)


class WritesIntoSeveral(Plain):
    """Leaves a single sample alone."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            x.mul_(0.5)
        return self.body(x)


WRITERS = (Scales, Assigns, WritesAfterwards, Activates, WritesIntoParts, AddsNoise, WritesIntoSeveral)


def made(kind: type[nn.Module]) -> tuple[nn.Module, list[Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().eval()
    generator = torch.Generator().manual_seed(1)
    data: list[Any] = [torch.randn(16, 16, generator=generator) for _ in range(3)]
    if kind is WritesIntoParts:
        data = [({"x": x}, [torch.randn(16, 16, generator=generator)]) for x in data]
    return model, data


class Fresh:
    """The same batches, made anew in every pass."""

    def __init__(self, data: list[Any]) -> None:
        self.data = copy.deepcopy(data)

    def __iter__(self) -> Iterator[Any]:
        return iter(copy.deepcopy(self.data))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b))


@pytest.mark.parametrize("kind", WRITERS)
def test_batches_are_protected_and_results_are_those_of_fresh_ones(kind: type[nn.Module]) -> None:
    model, data = made(kind)
    fresh = Fresh(data)
    with unchanged(model):
        stats, expected = rw.collect(model, data, gradients=True), rw.collect(model, fresh, gradients=True)
    assert all(torch.equal(stats[name].mean_GD, expected[name].mean_GD) for name in stats)
    plan = rw.choose(model, stats, keep={"params": 0.6})
    for engine in ("auto", "hooks"):
        small = rw.factorise(model, plan, data=data, engine=engine)
        assert equal(dict(small.state_dict()), dict(rw.factorise(model, plan, data=fresh, engine=engine).state_dict()))
    for compare in (rw.evaluate.agreement, rw.evaluate.relative_error):
        assert compare(model, small, data) == compare(model, small, fresh)
    rw.compress(model, data, keep={"params": 0.6}, method="one-shot")
    rw.choose_shrinkage(model, plan, stats, data)
    rw.evaluate.latency({"dense": model}, data[0], rounds=1, warmup=0)
    if kind is not WritesAfterwards:
        rw.heal(small, model, data, epochs=1)
    assert equal(data, fresh.data)


def test_what_training_cannot_work_with_is_told() -> None:
    model, data = made(WritesAfterwards)
    small, _ = rw.compress(model, data, keep={"params": 0.6})
    with pytest.raises(ValueError, match=r"writes into a tensor that its gradient needs .*x = x\.clone\(\)"):
        rw.heal(small, model, data, epochs=1)


def test_a_file_of_a_network_that_writes_into_its_input(tmp_path: Any) -> None:
    model, data = made(Scales)
    before = data[0].clone()
    rw.export.pt2(model, data[0], tmp_path / "net.pt2")
    assert torch.equal(data[0], before)
    fast, _ = rw.kernels.optimised(model, data[0], rounds=1)
    torch.testing.assert_close(fast(before.clone()), model(before.clone()))


def test_a_network_that_writes_nothing_gets_the_batches_themselves() -> None:
    seen: list[int] = []
    model, data = made(Plain)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].data_ptr()))
    with pristine(model):
        for batch in data:
            call(model, batch)
    assert seen[0] != data[0].data_ptr()  # the first of a shape is tried on a copy
    assert seen[1:] == [batch.data_ptr() for batch in data[1:]]


class Clips(Plain):
    """Writes where a value is large."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.max()) > 100:
            x.clamp_(max=100)
        return self.body(x)


def test_a_write_that_depends_on_values_is_told_with_the_batch() -> None:
    model, data = made(Clips)
    data[2][0, 0] = 200
    with pytest.raises(ValueError, match=r"Clips wrote into batch 2 \(16, 16\), though it left others.*x\.clone\(\)"):
        rw.evaluate.relative_error(model, copy.deepcopy(model), data)


def test_one_tensor_given_twice_stays_one() -> None:
    x = torch.ones(2)
    first, second = apart(nn.Identity(), (x, x))
    assert first is second
    assert first is not x


@pytest.mark.parametrize("run", [rw.collect, lambda model, data: rw.compress(model, data, keep={"params": 0.75})])
def test_embeddings_with_max_norm_keep_their_weights(run: Callable[..., Any]) -> None:
    model, data = looked_up()
    with unchanged(model):
        run(model, data)


def looked_up() -> tuple[nn.Module, list[Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        table = nn.Embedding(50, 16, max_norm=0.5)
        model = nn.Sequential(table, nn.Flatten(), nn.Linear(80, 24), nn.ReLU(), nn.Linear(24, 6)).eval()
        return model, [torch.randint(50, (16, 5)) for _ in range(3)]


def test_results_with_max_norm() -> None:
    model, data = looked_up()
    normed = copy.deepcopy(model)
    with torch.no_grad():
        for batch in data:
            normed(batch)  # rescales the rows for good
    assert not torch.equal(normed[0].weight, model[0].weight)
    with unchanged(model):
        stats, expected = rw.collect(model, data), rw.collect(normed, data)
        torch.testing.assert_close(stats["2"].mean_GD, expected["2"].mean_GD)
        plan = rw.choose(model, stats, keep={"params": 0.75})
        rw.profile(model, stats)
        small = rw.factorise(model, plan, data=data)
        assert torch.equal(small[0].weight, model[0].weight)
        assert rw.evaluate.relative_error(model, normed, data) < 1e-6
        rw.evaluate.latency({"dense": model}, data[0], rounds=1, warmup=0)
        rw.heal(small, model, data, epochs=1, blocks=["2"] if hasattr(small[2], "format") else False)

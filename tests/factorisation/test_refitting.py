"""The last least squares again: against explicit rows, planted answers, more data, padding, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.nets import chains, make, plan_of, same_bits, unchanged
from support.stacks import stack_of, words
from torch import Tensor, nn

import rankwise as rw
from rankwise.factorisation.further import Further
from rankwise.layers.kinds import Role
from rankwise.layers.modules import Kept

pytestmark = pytest.mark.usefixtures("one_thread")


class Mlp(nn.Module):
    """Hidden units beside a layer of its own."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(6, 20), nn.Linear(20, 6, bias=bias), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.down(torch.relu(self.up(x))))  # type: ignore[no-any-return]


def rows(count: int, seed: int = 0) -> list[Tensor]:
    return [part + 0.5 for part in torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)).split(50)]


def squeezed(model: nn.Module, few: list[Tensor], units: int = 8) -> nn.Module:
    """The hidden units narrowed to a few, and a low rank, from few rows."""
    stats = rw.collect(model, few, joint=True)
    hidden = next(name for name, site in stats.sites.items() if site.role is Role.HIDDEN)
    return rw.factorise(model, plan_of(stats.sites, {hidden: ("nystrom", (units,)), "out": ("svd", (2,))}), stats)


@torch.no_grad()
def read_by(model: Mlp, small: nn.Module, data: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each chain what its last layer reads on the dense network's inputs, and the dense outputs; float64."""
    x = torch.cat(data)
    units = torch.relu(model.up(x))
    after = x + model.down(units)
    kept = small.down[0].places.long()  # type: ignore[index, union-attr]
    factor = small.out[0](after)  # type: ignore[index, operator]
    pairs = {"down": (units[:, kept], model.down(units)), "out": (factor, model.out(after))}
    return {name: (z.double(), y.double()) for name, (z, y) in pairs.items()}


def missed(chain: Any, z: Tensor, y: Tensor) -> float:
    last = chain[-1]
    bias = 0 if last.bias is None else last.bias.detach().double()
    return float((y - z @ last.weight.detach().double().mT - bias).square().sum())


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_least_squares_on_all_rows(bias: bool) -> None:
    model = make(lambda: Mlp(bias))
    few, more = rows(60), rows(600, seed=1)
    small = squeezed(model, few)
    with unchanged(model), unchanged(small):
        better = rw.refit(small, model, few + more)
    for name, (z, y) in read_by(model, better, few + more).items():
        last = better.get_submodule(name)[-1]  # type: ignore[index]
        design = z if last.bias is None else torch.cat([z, torch.ones(len(z), 1)], 1)
        solution = torch.linalg.lstsq(design, y, driver="gelsd").solution
        best = float((y - design @ solution).square().sum())
        before, after = (missed(net.get_submodule(name), z, y) for net in (small, better))
        assert best <= after * (1 + 1e-9)
        assert after <= best * (1 + 1e-3)  # the damping
        assert after < before


def test_only_the_last_layers_change() -> None:
    model = make(Mlp)
    small = squeezed(model, rows(60))
    better = rw.refit(small, model, rows(300, seed=2))
    assert [type(part) for part in better.down] == [Kept, nn.Linear]  # type: ignore[union-attr]
    changed = {name for name, value in better.state_dict().items() if not torch.equal(value, small.state_dict()[name])}
    assert changed == {f"{name}.1.{what}" for name in ("down", "out") for what in ("weight", "bias")}
    assert all(chain.training == small.get_submodule(name).training for name, chain in chains(better).items())


def test_units_that_are_copies_are_recovered() -> None:
    model = make(Mlp)
    with torch.no_grad():  # a relu lets factors through: unit j + 10 is twice unit j
        model.up.weight[10:], model.up.bias[10:] = 2 * model.up.weight[:10], 2 * model.up.bias[:10]
    few, more = rows(200), rows(800, seed=3)
    small = squeezed(model, few, units=10)
    kept = small.down[0].places  # type: ignore[index, union-attr]
    with torch.no_grad():
        small.down[1].weight.normal_()  # type: ignore[index, union-attr, operator]
    better = rw.refit(small, model, few + more)
    assert sorted((kept % 10).tolist()) == list(range(10))
    z, y = read_by(model, better, few + more)["down"]
    assert missed(better.down, z, y) < 1e-5 * float((y - y.mean(0)).square().sum())  # the damping


def test_more_rows_are_never_worse_on_all_of_them() -> None:
    model = make(Mlp)
    few, more, most = rows(60), rows(200, seed=4), rows(900, seed=5)
    small = squeezed(model, few)
    data = few + more + most
    some, every = rw.refit(small, model, few + more), rw.refit(small, model, data)
    for name, (z, y) in read_by(model, small, data).items():
        errors = [missed(net.get_submodule(name), z, y) for net in (small, some, every)]
        assert errors[2] <= errors[1] * (1 + 1e-6)
        assert errors[2] <= errors[0] * (1 + 1e-6)


def test_padding_does_not_count() -> None:
    model, batches = stack_of(), words()
    stats = rw.collect(model, batches, joint=True)
    small = rw.factorise(model, rw.choose(model, stats, keep={"linear": 0.5}), stats)
    other = [{**batch, "input_ids": batch["input_ids"] * batch["attention_mask"] + 7 * (1 - batch["attention_mask"])}
             for batch in batches]  # fmt: skip
    better, same = rw.refit(small, model, batches), rw.refit(small, model, other)
    for name, value in better.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name], rtol=1e-5, atol=1e-6)
    unmasked = rw.refit(small, model, batches, mask=lambda batch: torch.ones_like(batch["attention_mask"]))
    assert not same_bits(unmasked, better)


def test_few_rows_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    model = make(Mlp)
    small = squeezed(model, rows(60))
    with caplog.at_level(logging.INFO, logger="rankwise"):
        rw.refit(small, model, rows(380))
    assert (
        "refitted on 380 rows, 19.0 for each of the 20 inputs of the widest layer; 20 are a good start" in caplog.text
    )
    assert caplog.records[-1].levelno == logging.WARNING
    with caplog.at_level(logging.INFO, logger="rankwise"):
        rw.refit(small, model, rows(400))
    assert caplog.records[-1].levelno == logging.INFO


def test_what_cannot_be_refitted() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    data = [torch.randn(4, 3, 8, 8)]
    small, _ = rw.compress(conv, data, keep={"params": 0.6})
    with pytest.raises(ValueError, match="no chain of this Sequential ends in a linear layer of its own"):
        rw.refit(small, conv, data)
    model = make(Mlp)
    small = squeezed(model, rows(60))
    with pytest.raises(ValueError, match="'down' is not a dense layer in the dense network"):
        rw.refit(small, small, rows(60))
    with pytest.raises(ValueError, match="not finite"):
        rw.refit(small, model, [torch.full((4, 6), float("nan"))])


def test_further_batches_are_fitted_or_judge() -> None:
    data = [torch.tensor([number]) for number in range(17)]
    further = Further(data, judges=True)
    assert [int(batch) for batch in further.held_out] == [7, 15]
    assert [int(batch) for batch in further.as_many_fitted] == [0, 1]
    fitted = [int(batch) for batch in further.with_fitted([torch.tensor([99])])]
    assert fitted == [99, *range(7), *range(8, 15), 16]
    assert further.growth([torch.zeros(5)]) == 4.0
    assert not list(Further(data, judges=False).held_out)
    with pytest.raises(ValueError, match="there is only one batch"):
        Further(data[:1], judges=True)


@pytest.mark.parametrize("count", [2, 12])
def test_the_method_is_decided_on_held_out_batches(count: int, caplog: pytest.LogCaptureFixture) -> None:
    model, data, further = stack_of(), words(1), words(count, seed=3)
    options: dict[str, Any] = {"keep": {"linear": 0.5}, "joint": True, "refit": further}
    with caplog.at_level(logging.INFO, logger="rankwise"):
        small, _ = rw.compress(model, data, method="auto", **options)
    if count == 2:
        assert "one-shot: sequential fits need 40 rows for each input" in caplog.text
    else:
        assert "one-shot: divergence" in caplog.text or "one-shot: relative squared error" in caplog.text
        assert "is taken: nearest on the held-out batches" in caplog.text
    fitted = [*further[: min(count, 8) - 1], *further[8:]]
    named = [
        rw.compress(model, data, method=each, **{**options, "refit": fitted})[0] for each in ("one-shot", "sequential")
    ]
    assert sum(same_bits(small, each) for each in named) == 1
    if count == 2:
        assert same_bits(small, named[0])


def test_without_further_batches_auto_is_one_shot_for_joint_sites_alone() -> None:
    model, data = stack_of(), words(1)
    for joint, method in ((True, "one-shot"), (False, "sequential")):
        auto, named = (
            rw.compress(model, data, keep={"linear": 0.6}, joint=joint, method=each)[0] for each in ("auto", method)
        )
        assert same_bits(auto, named)

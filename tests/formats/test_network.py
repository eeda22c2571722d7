"""From a description to layers: which letters are summed, kept apart or wait, and where channels are rearranged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankwise.formats.ladders import divisors, split_number
from rankwise.formats.network import Network
from rankwise.layers.modules import Arrange, Bias, GroupedLinear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(factors: tuple[str, ...], channels: str, outputs: str, spatial: str = "", **sizes: int) -> Network:
    kernel = tuple(sizes[letter] for letter in spatial) if spatial != "q" else (3, 3)
    return Network(factors, channels, outputs, spatial, {"g": 1, **sizes}, kernel)


def test_steps_of_a_sum_of_rank_one_kernels() -> None:
    first, rows, columns, last = network(("rc", "rh", "rw", "tr"), "c", "t", "hw", r=4, c=5, t=6, h=3, w=2).steps
    assert (first.groups, first.summed, first.made, first.waiting) == ("g", "c", "r", "")
    assert (rows.groups, rows.summed, rows.made, rows.taps) == ("gr", "", "", "h")
    assert (columns.groups, columns.taps) == ("gr", "w")
    assert (last.groups, last.summed, last.made) == ("g", "r", "t")


def test_what_a_factor_does_not_hold_waits_among_the_samples() -> None:
    kronecker = network(("rus", "rtc"), "cs", "tu", r=2, c=3, s=4, t=5, u=6)
    second, first = kronecker.steps
    assert (second.summed, second.made, second.waiting) == ("s", "ru", "c")
    assert (set(first.summed), first.made, first.waiting) == ({"r", "c"}, "t", "u")
    assert [change is not None for change in kronecker.arrangements] == [True, True, True]
    train = network(("dc", "ad", "ta"), "c", "t", d=2, c=3, a=4, t=5)
    assert train.arrangements == (None, None, None, None)


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
@pytest.mark.parametrize(
    "description",
    [
        (("rus", "rtc"), "cs", "tu"),
        (("dc", "dsau", "ta"), "cs", "tu"),
        (("dcx", "dsau", "xta"), "cs", "tu"),
        (("ncj", "nbi", "nabc", "tna"), "ij", "t"),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_features_of_any_leading_shape(
    description: tuple[tuple[str, ...], str, str], lead: tuple[int, ...], bias: bool
) -> None:
    sizes = {letter: 2 + number % 3 for number, letter in enumerate(sorted(set("".join(description[0]))))}
    made = network(*description, **sizes)
    dense = nn.Linear(made.count(made.channels), made.count(made.outputs)).double()
    chain = nn.Sequential(*made.layers(dense, bias, {"dtype": torch.float64}))
    factors = [normal(1, *made.shape(letters), seed=n) for n, letters in enumerate(made.factors)]
    with torch.no_grad():
        made.write(chain, factors)
    for found, wanted in zip(made.read(chain), factors, strict=True):
        assert torch.equal(found, wanted)
    x = normal(*lead, dense.in_features, seed=9)
    wanted = x @ made.kernel(factors).mT
    if bias:
        own = chain[-1].bias
        assert isinstance(own, Tensor)
        nn.init.normal_(own)
        wanted = wanted + own
    torch.testing.assert_close(chain(x), wanted)
    assert sum(p.numel() for p in chain.parameters()) == made.params() + bias * dense.out_features


def test_arrange_is_a_permutation() -> None:
    x = torch.arange(24.0)
    images = Arrange((2, 3, 4), (2, 0, 1), (0, 1), 2)(x.view(1, 24, 1, 1))
    assert images.shape == (4, 6, 1, 1)
    back = Arrange((4, 2, 3), (1, 2, 0), (1, 0), 2)(images)
    assert torch.equal(back, x.view(1, 24, 1, 1))
    assert "sizes=(2, 3, 4)" in repr(Arrange((2, 3, 4), (2, 0, 1), (0, 1), 2))


def test_grouped_linear_is_block_diagonal() -> None:
    layer = GroupedLinear(6, 4, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(normal(4, 3))
    x = normal(5, 6, seed=1)
    wanted = torch.cat([x[:, :3] @ layer.weight[:2].mT, x[:, 3:] @ layer.weight[2:].mT], 1)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(x[0]), wanted[0])
    assert "6, 4, groups=2" in repr(layer)


def test_bias_of_images_and_features() -> None:
    for spatial, shape in ((2, (2, 3, 4, 5)), (0, (2, 7, 3))):
        bias = Bias(3, spatial)
        nn.init.normal_(bias.bias)
        shift = bias(torch.zeros(shape)).movedim(1 if spatial else -1, 0).flatten(1)
        assert torch.equal(shift, bias.bias[:, None].expand_as(shift))


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert [split_number(n, 3) for n in (512, 96, 7, 1)] == [(8, 8, 8), (6, 4, 4), (7, 1, 1), (1, 1, 1)]

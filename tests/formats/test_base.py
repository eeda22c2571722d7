"""The pieces that all formats share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from rankwise import FORMATS, LowRank, Site, find
from rankwise.formats import get_format
from rankwise.formats.base import relative
from rankwise.formats.building import set_bias
from rankwise.formats.ladders import steps
from rankwise.formats.weights import grouped, site_bias, site_weight, ungrouped


def conv_site(outputs: int, channels: int, kernel: tuple[int, int], groups: int) -> Site:
    return Site(name="conv", kind="conv2d", weight_shape=(outputs, channels, *kernel), groups=groups)


def test_grouped_reads_outputs_channels_and_taps_and_ungrouped_writes_them_back() -> None:
    site = conv_site(6, 4, (3, 2), 2)
    weight = torch.randn(6, 4, 3, 2)
    parts = grouped(site, weight)
    assert (parts.shape, parts.dtype) == ((2, 3, 4, 6), torch.float64)
    assert float(parts[1, 2, 3, 5]) == pytest.approx(float(weight[5, 3, 2, 1]))
    assert torch.equal(ungrouped(site, parts), weight.double())
    linear = Site(name="fc", kind="linear", weight_shape=(6, 4))
    assert grouped(linear, weight[:, :, 0, 0]).shape == (1, 6, 4, 1)
    assert torch.equal(ungrouped(linear, grouped(linear, weight[:, :, 0, 0])), weight[:, :, 0, 0].double())


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 300), step=st.integers(1, 40), most=st.one_of(st.none(), st.integers(2, 40)))
def test_steps_are_multiples_and_the_limit(limit: int, step: int, most: int | None) -> None:
    values = steps(limit, step, most)
    assert values == sorted(set(values))
    assert values[-1] == limit
    assert all(value % step == 0 or value == limit for value in values)
    assert all(1 <= value <= limit for value in values)
    assert values[0] == min(step, limit)
    if most is None:
        assert len(values) == -(-limit // step)
    else:
        assert len(values) <= max(most, 1)


def test_relative_error_of_nothing_is_zero() -> None:
    assert relative(1.0, 4.0) == 0.25
    assert relative(0.0, 0.0) == 0.0


def test_get_format_lists_the_names() -> None:
    for name, format in FORMATS.items():
        assert get_format(name) is format
        assert format.name == name
        assert format.summary
    with pytest.raises(ValueError, match=r"unknown format 'parafac'; the formats are .*spatial_svd.*svd.*tucker2"):
        get_format("parafac")


def test_set_bias_copies_in_place_and_insists_on_both_or_neither() -> None:
    layer = nn.Linear(2, 3)
    before = layer.bias
    with torch.no_grad():
        set_bias(layer, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        assert layer.bias is before
        assert layer.bias.tolist() == [1.0, 2.0, 3.0]
        with pytest.raises(AssertionError):
            set_bias(layer, None)
        with pytest.raises(AssertionError):
            set_bias(nn.Linear(2, 3, bias=False), torch.zeros(3))


def test_site_weight_is_output_first_whatever_the_layout() -> None:
    hf = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 3)
    site = find(nn.Sequential(hf), torch.zeros(2, 3))["0"]
    weight = site_weight(nn.Sequential(hf), site)
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((5, 3), torch.float64, False)
    assert torch.equal(weight, hf.weight.detach().double().mT)
    bias = site_bias(nn.Sequential(hf), site)
    assert bias is not None
    assert torch.equal(bias, hf.bias.detach().double())
    bare = nn.Sequential(nn.Linear(3, 2, bias=False))
    assert site_bias(bare, find(bare, torch.zeros(1, 3))["0"]) is None


def test_site_weight_is_read_through_a_parametrisation() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    site = find(model, torch.zeros(1, 4))["0"]
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    assert torch.equal(site_weight(model, site), model[0].weight.detach().double())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    site = find(model, torch.zeros(1, 3))["0"]
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(ValueError, match="site '0': the weight holds NaN or infinity"):
        site_weight(model, site)


def test_a_chain_is_a_sequential_whose_weight_is_no_parameter() -> None:
    chain = FORMATS["svd"].build(nn.Linear(6, 5), (2,), bias=True)
    assert isinstance(chain, LowRank)
    assert isinstance(chain, nn.Sequential)
    assert list(chain.state_dict()) == ["0.weight", "1.weight", "1.bias"]
    torch.testing.assert_close(chain.weight, chain[1].weight @ chain[0].weight)


def test_build_needs_no_values() -> None:
    """Loading builds chains before anything is known but the ranks."""
    for name, ranks in (("svd", (2,)), ("spatial_svd", (3,)), ("tucker2", (2, 3))):
        with torch.device("meta"):
            conv = nn.Conv2d(6, 4, 3, padding=1)
        chain = FORMATS[name].build(conv, ranks, bias=False)
        assert chain.bias is None
        assert chain.weight.shape == conv.weight.shape


@pytest.mark.parametrize("name, ranks", [("cp3", (20_000,)), ("tr", (200, 90, 90, 90))])
def test_ranks_that_no_memory_holds_are_refused_before_anything_is_fitted(name: str, ranks: tuple[int, ...]) -> None:
    site = conv_site(512, 512, (7, 7), 1)
    with pytest.raises(ValueError, match=r"'conv': .* bond states .* 16,384 is the most"):
        FORMATS[name].fit(site, torch.zeros(512, 512, 7, 7), [], ranks)

"""Gathered rows against `unfold`, the convolution itself, and the promises of the sampled positions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rankwise import Site
from rankwise.formats.convolution import PLAIN, TRANSPOSED
from rankwise.formats.weights import read
from rankwise.network.site import Call
from rankwise.statistics.rows import (
    FEWEST_POSITIONS,
    ROWS_PER_INPUT,
    input_rows,
    output_rows,
    padding_sides,
    positions_per_sample,
    sample_positions,
    unfold_order,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

CONVS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padding": {"kernel_size": 3, "padding": 1},
    "uneven": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 4), "dilation": (1, 2)},
    "1 x 1 with stride and padding": {"kernel_size": 1, "stride": 3, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same", "dilation": (2, 1)},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 3)},
    "valid": {"kernel_size": (2, 3), "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    "circular": {"kernel_size": (3, 2), "padding": (1, 2), "padding_mode": "circular", "stride": (1, 2)},
    "replicate": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "dilation": 2},
    "same, even kernel, circular": {"kernel_size": (2, 4), "padding": "same", "padding_mode": "circular"},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "groups, uneven": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1), "groups": 3},
    "1-D": {"kernel_size": (3,), "padding": 1},
    "1-D, uneven": {"kernel_size": (5,), "stride": 2, "padding": 3, "dilation": 2, "groups": 2},
    "1-D, same, even kernel, reflect": {"kernel_size": (4,), "padding": "same", "padding_mode": "reflect"},
    "1-D, 1 tap": {"kernel_size": (1,), "stride": 3},
    "3-D": {"kernel_size": (3, 3, 3), "padding": 1},
    "3-D, uneven": {"kernel_size": (1, 2, 3), "stride": (1, 2, 1), "padding": (0, 1, 4), "dilation": (1, 1, 2)},
    "transposed": {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True},
    "transposed, no overlap": {"kernel_size": 2, "stride": 3, "transposed": True},
    "transposed, uneven": {
        **{"kernel_size": (2, 5), "stride": (3, 2), "padding": (0, 3), "dilation": (3, 1), "output_padding": (2, 1)},
        **{"groups": 2, "transposed": True},
    },
    "transposed, 1-D": {"kernel_size": (5,), "stride": 2, "padding": 2, "groups": 2, "transposed": True},
    "transposed, 3-D": {"kernel_size": (1, 2, 3), "stride": (1, 2, 2), "padding": (0, 0, 1), "transposed": True},
    "3-D, same, circular": {"kernel_size": (2, 1, 3), "padding": "same", "padding_mode": "circular", "groups": 2},
}
each = pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)


def dims_of(options: dict[str, Any]) -> int:
    size = options["kernel_size"]
    return len(size) if isinstance(size, tuple) else 2


def conv_of(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    dims = dims_of(options)
    options = dict(options)
    layer = (TRANSPOSED if options.pop("transposed", False) else PLAIN)[dims - 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(3, 6, *{1: (23,), 2: (9, 8), 3: (4, 7, 6)}[dims], dtype=torch.float64)
        return layer(6, 12, **options).to(dtype), x.to(dtype)


def unfolded(conv: Any, x: Tensor) -> Tensor:
    """G x N x D, channel-major, by windows over the input padded the way the layer's own forward pads."""
    dims = len(conv.kernel_size)
    stride = conv.stride
    if conv.transposed:  # a convolution with the kernel turned round, over the input with zeros in between
        spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)))
        spread[(..., *(slice(None, None, s) for s in stride))] = x
        spans = [d * (k - 1) - p for d, k, p in zip(conv.dilation, conv.kernel_size, conv.padding, strict=True)]
        sides = [(span, span + more) for span, more in zip(spans, conv.output_padding, strict=True)]
        x, stride = F.pad(spread, [side for pair in reversed(sides) for side in pair]), (1,) * dims
    else:
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for d, (size, step, dilation) in enumerate(zip(conv.kernel_size, stride, conv.dilation, strict=True)):
        x = x.unfold(2 + d, dilation * (size - 1) + 1, step)[..., ::dilation]
        x = x.flip(-1) if conv.transposed else x
    windows = x.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))  # B, positions, channels, taps
    rows = windows.reshape(-1, conv.groups, conv.in_channels // conv.groups * math.prod(conv.kernel_size))
    return rows.transpose(0, 1)


def test_windows_of_an_image_are_those_of_unfold() -> None:
    conv, x = conv_of(CONVS["uneven"])
    columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    torch.testing.assert_close(unfolded(conv, x)[0], columns.transpose(1, 2).flatten(0, 1), atol=0, rtol=0)


def in_unfold_order(conv: Any, rows: Tensor) -> Tensor:
    return rows[:, :, unfold_order(math.prod(conv.kernel_size), rows.shape[2], rows.device)]


@each
@pytest.mark.parametrize("channels_last", [False, True])
def test_all_rows_are_those_of_unfold(options: dict[str, Any], channels_last: bool) -> None:
    conv, x = conv_of(options)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
    before = x.clone()
    rows = in_unfold_order(conv, input_rows(conv, x, None))
    torch.testing.assert_close(rows, unfolded(conv, x), atol=0, rtol=0)
    assert torch.equal(x, before)


@each
def test_the_weight_times_the_input_rows_is_the_output_rows(options: dict[str, Any]) -> None:
    conv, x = conv_of(options)
    y = conv(x).detach()
    total = y[0, 0].numel()
    assert conv.bias is not None
    weight, bias = read(conv).detach().flatten(1).unflatten(0, (conv.groups, -1)), conv.bias.detach()
    for wanted in (None, 1, 5, total - 1):
        positions = None if wanted is None else sample_positions(len(x), total, wanted, "key", 0)
        rows, outputs = input_rows(conv, x, positions), output_rows(conv, y, positions)
        assert rows.shape[:2] == outputs.shape[:2] == (conv.groups, len(x) * (wanted or total))
        computed = in_unfold_order(conv, rows) @ weight.mT + bias.reshape(conv.groups, 1, -1)
        torch.testing.assert_close(computed, outputs)


def test_padding_sides_are_those_of_the_forward() -> None:
    for options in CONVS.values():
        conv, _ = conv_of(options)
        if conv.transposed:
            continue  # its padding crops the output
        flat = [side for sides in reversed(padding_sides(conv)) for side in sides]
        assert flat == list(conv._reversed_padding_repeated_twice)


@pytest.mark.parametrize("shape", [(7,), (4, 7), (3, 5, 7), (2, 3, 4, 7)])
def test_linear_rows_are_the_vectors(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(7, 5).double(), torch.randn(shape, dtype=torch.float64)
    y = layer(x).detach()
    rows, outputs = input_rows(layer, x, None), output_rows(layer, y, None)
    assert torch.equal(rows, x.reshape(1, -1, 7))
    torch.testing.assert_close(rows @ layer.weight.mT + layer.bias, outputs)


def test_sampled_rows_of_tokens_are_those_tokens() -> None:
    layer, x = nn.Linear(7, 5).double(), torch.randn(3, 10, 7, dtype=torch.float64)
    positions = sample_positions(3, 10, 4, "key", 0)
    assert positions is not None
    rows = input_rows(layer, x, positions)
    assert torch.equal(rows[0], torch.cat([x[i, positions[i]] for i in range(3)]))
    outputs = output_rows(layer, layer(x).detach(), positions)
    torch.testing.assert_close(rows @ layer.weight.mT + layer.bias, outputs)


def test_transformers_conv1d_and_an_unbatched_image() -> None:
    hf = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 7).double()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(input_rows(hf, x, None) @ hf.weight + hf.bias, output_rows(hf, hf(x).detach(), None))
    conv, images = conv_of(CONVS["padding"])
    assert torch.equal(input_rows(conv, images[0], None), input_rows(conv, images[:1], None))
    y = conv(images).detach()
    assert torch.equal(output_rows(conv, y[0], None), output_rows(conv, y[:1], None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_come_in_single_precision(dtype: torch.dtype) -> None:
    conv, x = conv_of(CONVS["uneven"], dtype)
    rows = input_rows(conv, x, None)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(in_unfold_order(conv, rows), unfolded(conv, x.float()), atol=0, rtol=0)
    assert input_rows(nn.Linear(4, 2), torch.ones(3, 4, dtype=dtype), None).dtype == torch.float32


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1}])
def test_rows_survive_a_change_of_the_input_in_place(options: dict[str, Any]) -> None:
    conv, x = conv_of(options)
    for layer, value in ((conv, x), (nn.Linear(8, 2).double(), torch.randn(4, 8, dtype=torch.float64))):
        for positions in (None, torch.zeros(len(value), 1, dtype=torch.long)):
            rows = input_rows(layer, value, positions)
            before = rows.clone()
            changed = value.clone()
            value.zero_()
            assert torch.equal(rows, before)
            value.copy_(changed)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 4), total=st.integers(2, 300), data=st.data(), seed=st.integers(0, 2**31))
def test_positions_lie_one_in_each_stratum(batch: int, total: int, data: st.DataObject, seed: int) -> None:
    wanted = data.draw(st.integers(1, total - 1))
    positions = sample_positions(batch, total, wanted, "site:0:0", seed)
    assert positions is not None
    assert positions.shape == (batch, wanted)
    edges = torch.arange(wanted + 1, dtype=torch.float64) * (total / wanted)
    assert bool((positions >= edges[:-1].floor()).all())
    assert bool((positions <= edges[1:].ceil() - 1).all())


@pytest.mark.parametrize("wanted", [None, 10, 11])
def test_no_draw_where_all_positions_are_wanted(wanted: int | None) -> None:
    assert sample_positions(3, 10, wanted, "key", 0) is None


def draw(key: str, seed: int) -> Tensor:
    positions = sample_positions(8, 100, 20, key, seed)
    assert positions is not None
    return positions


def test_positions_follow_from_key_and_seed_alone() -> None:
    first = draw("a:0:0", 0)
    torch.rand(3)  # the global random state plays no part
    state = torch.get_rng_state()
    assert torch.equal(draw("a:0:0", 0), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(draw("a:1:0", 0), first)


def test_another_seed_draws_other_positions() -> None:
    assert not torch.equal(draw("a:0:0", 1), draw("a:0:0", 0))


def test_every_position_is_drawn_equally_often() -> None:
    total, wanted, batch = 23, 7, 20_000
    positions = sample_positions(batch, total, wanted, "key", 0)
    assert positions is not None
    share = torch.bincount(positions.flatten(), minlength=total) / batch
    sigma = (wanted / total * (1 - wanted / total) / batch) ** 0.5
    assert float((share - wanted / total).abs().max()) < 5 * sigma


def test_positions_per_sample() -> None:
    calls = (Call(rows=400, in_positions=400, in_size=(20, 20), out_size=(20, 20)),)
    site = Site(name="conv", kind="conv2d", weight_shape=(400, 10, 3, 3), calls=calls)
    assert positions_per_sample(site, 8, "all") is None
    assert positions_per_sample(site, 8, 5) == 5
    assert positions_per_sample(site, 8, "auto") == -(-ROWS_PER_INPUT * 90 // 8)
    assert positions_per_sample(site, 10**6, "auto") == FEWEST_POSITIONS
    narrow = replace(site, weight_shape=(10, 10, 3, 3))
    assert FEWEST_POSITIONS < (positions_per_sample(narrow, 1, "auto") or 0) < ROWS_PER_INPUT * 90  # or it costs more
    assert positions_per_sample(site, None, "auto") is not None
    for wrong in (0, -1, True, "some", 2.5):
        with pytest.raises(ValueError, match="positions must be"):
            positions_per_sample(site, 8, wrong)  # type: ignore[arg-type]


def test_unfold_order_of_known_labels() -> None:
    labels = [f"c{c}q{q}" for q in range(2) for c in range(3)]  # tap-major
    assert [labels[i] for i in unfold_order(2, 6, torch.device("cpu"))] == [
        f"c{c}q{q}" for c in range(3) for q in range(2)
    ]

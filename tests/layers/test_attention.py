"""Attention with projections of its own computes what `nn.MultiheadAttention` computes, whatever it is asked for."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.layers.attention import Attention

SAMPLES, QUERIES, KEYS, WIDTH, HEADS = 3, 5, 7, 16, 4
CAUSAL = torch.triu(torch.ones(QUERIES, KEYS, dtype=torch.bool), 1)
ADDED = torch.randn(SAMPLES * HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(0))
PADDING = torch.zeros(SAMPLES, KEYS, dtype=torch.bool).index_fill(1, torch.tensor([5, 6]), True)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "causal": {"attn_mask": CAUSAL},
    "hint": {"attn_mask": CAUSAL, "is_causal": True},
    "hint and padding": {"attn_mask": CAUSAL, "is_causal": True, "key_padding_mask": PADDING},
    "by head": {"attn_mask": ADDED, "key_padding_mask": -3 * PADDING.float()},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"bias": False},
    "other widths": {"kdim": 6, "vdim": 5},
    "further keys": {"add_bias_kv": True, "add_zero_attn": True},
}


def pair(**options: Any) -> tuple[nn.MultiheadAttention, Attention]:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in fused.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return fused, Attention(copy.deepcopy(fused))


def inputs(fused: nn.MultiheadAttention) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((QUERIES, WIDTH), (KEYS, fused.kdim), (KEYS, fused.vdim))
    return [torch.randn(SAMPLES, length, width, generator=generator) for length, width in sizes]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_same_as_fused(options: str, masks: str) -> None:
    for batch_first, weights in itertools.product((True, False), (True, False)):
        fused, own = pair(batch_first=batch_first, **OPTIONS[options])
        given = inputs(fused) if batch_first else [each.transpose(0, 1) for each in inputs(fused)]
        wanted = fused.train(batch_first)(*given, need_weights=weights, **MASKS[masks])
        got = own.train(batch_first)(*given, need_weights=weights, **MASKS[masks])
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("masks", ["none", "padding", "causal"])
def test_one_sample_without_a_batch(masks: str) -> None:
    fused, own = pair()
    asked = {name: mask[0] if mask is PADDING else mask for name, mask in MASKS[masks].items()}
    given = [each[0] for each in inputs(fused)]
    for average in (True, False):
        wanted = fused(*given, average_attn_weights=average, **asked)
        torch.testing.assert_close(own(*given, average_attn_weights=average, **asked), wanted)


def test_gradients_and_random_numbers() -> None:
    before = torch.get_rng_state()
    fused, own = pair(batch_first=True)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Attention(fused)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    given = inputs(fused)
    for module in (fused, own):
        module(*given)[0].square().sum().backward()
    ours = torch.cat([part.weight.grad for part in (own.q_proj, own.k_proj, own.v_proj)])
    torch.testing.assert_close(ours, fused.in_proj_weight.grad)
    torch.testing.assert_close(own.out_proj.bias.grad, fused.out_proj.bias.grad)


def test_flags_dtype_and_attributes_are_kept() -> None:
    fused, _ = pair(batch_first=True, dropout=0.25)
    fused.in_proj_weight.requires_grad_(False)
    fused.label = "mine"
    own = Attention(fused.half().eval())
    assert [own.q_proj.weight.requires_grad, own.q_proj.bias.requires_grad] == [False, True]
    assert own.v_proj.weight.dtype == torch.float16
    assert (own.dropout, own.batch_first, own.label, own.training) == (0.25, True, "mine", False)
    assert isinstance(own, nn.MultiheadAttention)


def test_what_it_does_not_take() -> None:
    _, own = pair(batch_first=True)
    ragged = torch.nested.nested_tensor([torch.randn(2, WIDTH), torch.randn(3, WIDTH)])
    with pytest.raises(ValueError, match="takes padded tensors and masks, not nested tensors"):
        own(ragged, ragged, ragged)
    x = torch.randn(1, 3, WIDTH)
    with pytest.raises(ValueError, match="pass attn_mask too"):
        own(x, x, x, is_causal=True)

"""Multi-head attention whose projections are layers: they are called, so they can be read and replaced.

Letters: N samples, L positions of the query, S of key and value, E features, H heads, D = E / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
# Attributes that every module has: registries, hooks and the like.
_OF_MODULES = frozenset(vars(nn.Module()))


class Attention(nn.MultiheadAttention):
    """What `nn.MultiheadAttention` computes: `softmax(q k^T / sqrt(D) + mask) v` of three projections, and a fourth.

    It is called as `nn.MultiheadAttention` is and gives the same up to rounding. It holds four `nn.Linear` in place of
    one weight for query, key and value. It has no fused path, and `nn.TransformerEncoderLayer` around it takes none.

    Args:
        fused: the module whose numbers it copies; its output projection is taken as it is.

    Example:
        >>> fused = nn.MultiheadAttention(8, 2)
        >>> [name for name, _ in Attention(fused).named_children()]
        ['out_proj', 'q_proj', 'k_proj', 'v_proj']
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        # What the user set, and what callers ask for: batch_first, num_heads, dropout, ...
        self.__dict__.update({name: value for name, value in vars(fused).items() if name not in _OF_MODULES})
        self.training = fused.training
        # nn.TransformerEncoderLayer takes its fused path only where there is a bias here.
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, None)
        for name in ("bias_k", "bias_v"):
            self.__dict__.pop(name, None)  # None is a plain attribute there
            self.register_parameter(name, fused._parameters.get(name))
        self.out_proj = fused.out_proj
        weights: tuple[Any, ...] = (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight)
        if fused.in_proj_weight is not None:
            weights = _parts(fused.in_proj_weight)
        biases = (None,) * 3 if fused.in_proj_bias is None else _parts(fused.in_proj_bias)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
            self.add_module(name, linear_of(weight, bias))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask; pass attn_mask too")
        mixed, weights = attend(
            self.q_proj(query),
            self.k_proj(key),
            self.v_proj(value),
            further=(self.bias_k, self.bias_v),
            masks=(attn_mask, key_padding_mask),
            heads=self.num_heads,
            zero=self.add_zero_attn,
            batch_first=self.batch_first,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            average=average_attn_weights,
            # As in nn.MultiheadAttention: the hint stands for the mask if no other mask and no weights are wanted.
            causal=is_causal and key_padding_mask is None and not need_weights,
        )
        return self.out_proj(mixed), weights


@fx.wrap  # tracers do not look inside, where the work depends on the dimensions of the input
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    further: tuple[Tensor | None, Tensor | None],
    masks: tuple[Tensor | None, Tensor | None],
    heads: int,
    zero: bool,
    batch_first: bool,
    dropout: float,
    need_weights: bool,
    average: bool,
    causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """What attention does between its projections: `softmax(q k^T / sqrt(D) + mask) v`.

    Args:
        q, k, v: projected, N x L x E, or L x N x E, or L x E of one sample.
        further: key and value that are added for every sample.
        masks: of pairs, L x S or N H x L x S, and of padding, N x S; booleans hide, numbers are added.
        zero: whether a key and a value of zeros are added.
        average: whether to average the weights over the heads.
        causal: whether the mask of pairs is the usual one, so that kernels need not read it.

    Returns:
        The mixed values in the layout of `q`, and the weights if they are needed.
    """
    if q.is_nested or k.is_nested or v.is_nested:
        raise ValueError("attention with projections of its own takes padded tensors and masks, not nested tensors")
    single, turned = q.dim() == 2, q.dim() == 3 and not batch_first
    q_NLE, k_NSE, v_NSE = (x[None] if single else x.transpose(0, 1) if turned else x for x in (q, k, v))
    if further[0] is not None and further[1] is not None:
        k_NSE = torch.cat([k_NSE, further[0].expand(len(k_NSE), 1, -1)], 1)
        v_NSE = torch.cat([v_NSE, further[1].expand(len(v_NSE), 1, -1)], 1)
    if zero:
        k_NSE, v_NSE = F.pad(k_NSE, (0, 0, 0, 1)), F.pad(v_NSE, (0, 0, 0, 1))
    added = (further[0] is not None) + bool(zero)
    mask = None if causal else _mask(masks, heads, q.dtype, added)
    q_NHLD, k_NHSD, v_NHSD = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_NLE, k_NSE, v_NSE))
    weights: Tensor | None = None
    if need_weights:
        scores_NHLS = q_NHLD * q_NHLD.shape[-1] ** -0.5 @ k_NHSD.mT
        weights = F.dropout((scores_NHLS if mask is None else scores_NHLS + mask).softmax(-1), dropout)
        mixed_NHLD = weights @ v_NHSD
        weights = weights.mean(1) if average else weights
        weights = weights[0] if single else weights
    else:
        mixed_NHLD = F.scaled_dot_product_attention(q_NHLD, k_NHSD, v_NHSD, mask, dropout, causal)
    mixed_NLE = mixed_NHLD.transpose(1, 2).flatten(2)
    return mixed_NLE[0] if single else mixed_NLE.transpose(0, 1) if turned else mixed_NLE, weights


def _mask(masks: tuple[Tensor | None, Tensor | None], heads: int, dtype: torch.dtype, added: int) -> Tensor | None:
    """What is added to the scores, of a shape that broadcasts to N x H x L x S; keys that were added stay visible."""
    pairs, padding = (None if mask is None else _numbers(mask, dtype) for mask in masks)
    if pairs is not None and pairs.dim() == 3:
        pairs = pairs.unflatten(0, (-1, heads))
    if padding is not None:
        padding = (padding if padding.dim() == 2 else padding[None])[:, None, None]
    given = [mask for mask in (pairs, padding) if mask is not None]
    if not given:
        return None
    mask = given[0] if len(given) == 1 else given[0] + given[1]
    return F.pad(mask, (0, added)) if added else mask


def _numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: minus infinity where a boolean one is true."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)


def _parts(fused: nn.Parameter) -> tuple[nn.Parameter, ...]:
    """The rows of query, key and value."""
    return tuple(nn.Parameter(part, fused.requires_grad) for part in fused.detach().chunk(3))


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer with copies of a weight and a bias."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made

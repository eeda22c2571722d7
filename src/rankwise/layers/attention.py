"""Multi-head attention whose projections are layers: they are called, so they can be read and replaced.

Letters: N samples, L positions of the query, S of key and value, E features, H heads, D = E / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
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

    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        # What the user set, and what callers ask for: batch_first, num_heads, dropout, ...
        self.__dict__.update({name: value for name, value in vars(fused).items() if name not in _OF_MODULES})
        self.training = fused.training
        # nn.TransformerEncoderLayer takes its fused path only where there is a bias here.
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, None)
        self.bias_k, self.bias_v = fused.bias_k, fused.bias_v
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
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("attention with projections of its own takes padded tensors and masks, not nested tensors")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask; pass attn_mask too")
        # As in nn.MultiheadAttention: the hint stands for the mask where no other mask and no weights are wanted.
        causal = is_causal and key_padding_mask is None and not need_weights
        batched = query.dim() == 3
        q_NLE, k_NSE, v_NSE = (
            self._samples_first(projection(given), batched)
            for projection, given in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if self.bias_k is not None and self.bias_v is not None:
            k_NSE = torch.cat([k_NSE, self.bias_k.expand(len(k_NSE), 1, -1)], 1)
            v_NSE = torch.cat([v_NSE, self.bias_v.expand(len(v_NSE), 1, -1)], 1)
        if self.add_zero_attn:
            k_NSE, v_NSE = F.pad(k_NSE, (0, 0, 0, 1)), F.pad(v_NSE, (0, 0, 0, 1))
        mask = None if causal else self._mask(key_padding_mask, attn_mask, q_NLE.dtype, batched)
        q_NHLD, k_NHSD, v_NHSD = (
            each.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for each in (q_NLE, k_NSE, v_NSE)
        )
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores_NHLS = q_NHLD * self.head_dim**-0.5 @ k_NHSD.mT
            weights = F.dropout((scores_NHLS if mask is None else scores_NHLS + mask).softmax(-1), dropout)
            mixed_NHLD = weights @ v_NHSD
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            mixed_NHLD = F.scaled_dot_product_attention(q_NHLD, k_NHSD, v_NHSD, mask, dropout, causal)
        mixed_NLE = mixed_NHLD.transpose(1, 2).flatten(2)
        output: Tensor = self.out_proj(self._as_given(mixed_NLE, batched))
        return output, weights

    def _samples_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _as_given(self, x_NLE: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x_NLE[0]
        return x_NLE if self.batch_first else x_NLE.transpose(0, 1)

    def _mask(
        self, padding: Tensor | None, attends: Tensor | None, dtype: torch.dtype, batched: bool
    ) -> Tensor | None:
        """What is added to the scores, a part that broadcasts to N x H x L x S; keys that are added stay visible."""
        masks: list[Tensor] = []
        if attends is not None:
            attends = _added(attends, dtype)
            masks.append(attends if attends.dim() == 2 else attends.unflatten(0, (-1, self.num_heads)))
        if padding is not None:
            padding = _added(padding, dtype)
            masks.append((padding if batched else padding[None])[:, None, None])
        if not masks:
            return None
        mask = masks[0] if len(masks) == 1 else masks[0] + masks[1]
        further = (self.bias_k is not None) + bool(self.add_zero_attn)
        return F.pad(mask, (0, further)) if further else mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
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

"""A mixture of experts whose weights are one tensor of three dimensions, with layers for each expert.

Letters: E experts, H features, I hidden units, T tokens, K experts of a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import linear_of

# What transformers' `use_experts_implementation` sets on the classes that it decorates.
_FACTS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


class RunsExperts:
    """The forward of experts with layers of their own: each runs on the tokens that the router sent it.

    `sum_k weight_k down_e(gate(up_e(x)))` for the experts e of a token. An expert without tokens is called with none,
    so that calls do not depend on the routing.

    Args:
        host: a module of `separated`.
    """

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def __call__(self, hidden_TH: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        host: Any = self.host
        output_TH = torch.zeros_like(hidden_TH)
        for number in range(host.num_experts):
            tokens, places = torch.where(index_TK == number)
            expert = host.get_submodule(str(number))
            up = expert.up(hidden_TH[tokens])
            if host.has_gate and not host.is_concatenated:  # the gate of this class reads gates and values in turn
                up = torch.stack(up.chunk(2, -1), -1).flatten(-2)
            made = expert.down(host._apply_gate(up) if host.has_gate else host.act_fn(up))
            if getattr(host, "has_post_expert_norm", False):
                made = host.post_expert_norm(made)
            output_TH.index_add_(0, tokens, (made * weights_TK[tokens, places, None]).to(output_TH.dtype))
        return output_TH


def is_experts(module: nn.Module | None) -> bool:
    """Whether a module holds the weights of experts as transformers does: E x outputs x inputs, or transposed."""
    if not isinstance(module, nn.Module) or not all(hasattr(module, name) for name in (*_FACTS, "num_experts")):
        return False
    up, down = (module._parameters.get(name) for name in (_up_name(module), "down_proj"))
    return up is not None and down is not None and up.dim() == down.dim() == 3 and "forward" not in vars(module)


def separate_(module: Any) -> None:
    """Give each expert layers of its own, `0.up` and `0.down`, in place of the tensors that hold all of them."""
    name = _up_name(module)
    taken = [name, "down_proj", *((f"{name}_bias", "down_proj_bias") if module.has_bias else ())]
    tensors = {each: module._parameters.pop(each) for each in taken}
    for number in range(module.num_experts):
        expert = nn.Module()
        for layer, fused in (("up", name), ("down", "down_proj")):
            weight_OI = tensors[fused].detach()[number]
            weight_OI = weight_OI.mT if module.is_transposed else weight_OI
            bias_O = tensors[f"{fused}_bias"].detach()[number] if module.has_bias else None
            if layer == "up" and module.has_gate and not module.is_concatenated:
                weight_OI, bias_O = _in_turn(weight_OI), None if bias_O is None else _in_turn(bias_O)
            learns = tensors[fused].requires_grad
            bias = None if bias_O is None else nn.Parameter(bias_O, learns)
            expert.add_module(layer, linear_of(nn.Parameter(weight_OI, learns), bias))
        module.add_module(str(number), expert.train(module.training))
    module.forward = RunsExperts(module)


def _up_name(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _in_turn(rows: Tensor) -> Tensor:
    """Rows of gates and values in turn, gates first."""
    return torch.cat([rows[::2], rows[1::2]])

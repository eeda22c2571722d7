"""Mixtures of experts of transformers, whose weights are one tensor, with layers for each expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.inputs.torchvision_shim import allow_torchvision
from rankwise.layers.experts import is_experts

allow_torchvision()
transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 24, "num_experts_per_tok": 2},
}
# Concatenated gates; fewer units than features; transposed, in turn, with biases and a gate of its own.
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 3},
    "Qwen3Moe": {"num_experts": 3, "moe_intermediate_size": 12, "head_dim": 8},
    "GptOss": {"num_local_experts": 3, "head_dim": 8, "layer_types": ["full_attention"]},
}
BATCH = {"input_ids": torch.randint(0, 50, (8, 12), generator=torch.Generator().manual_seed(1))}


def net(family: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    made: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name == "Qwen3Moe" else name for name in FAMILIES]
)
def test_same_outputs_and_counts_and_hidden_units_of_each_expert(family: str, tmp_path: Path) -> None:
    model = net(family)
    assert any(map(is_experts, model.modules()))
    made = rw.unfused(model, BATCH)
    with torch.no_grad():
        torch.testing.assert_close(made(**BATCH).logits, model(**BATCH).logits, rtol=1e-4, atol=1e-5)
    before, after = rw.find(model, BATCH), rw.find(made, BATCH, joint=True)
    assert (after.total_params, after.total_macs) == (before.total_params, before.total_macs)
    experts = [site for site in after.values() if site.kind == "hidden"]
    assert [site.name.partition("experts.")[2] for site in experts] == ["0.up", "1.up", "2.up"]
    small, report = rw.compress(
        model, [BATCH], keep={"linear": 0.7}, joint=True, method="one-shot", example=BATCH, include=["*experts*"]
    )
    assert {row.format for row in report.plan.factorised} <= {"nystrom", "svd"}
    assert report.compressed.params == report.plan.planned["params"]
    rw.save(small, tmp_path / "out")
    again = rw.load(net(family), tmp_path / "out", example=BATCH)
    with torch.no_grad():
        assert torch.equal(again(**BATCH).logits, small(**BATCH).logits)


def test_calls_do_not_depend_on_the_routing() -> None:
    made = rw.unfused(net("Mixtral"), BATCH)
    experts: Any = next(part for name, part in made.named_modules() if name.endswith("mlp.experts"))
    calls = list[int]()
    for number in range(3):
        experts.get_submodule(f"{number}.down").register_forward_hook(lambda m, args, y: calls.append(len(y)))
    x, weights = torch.randn(4, 16), torch.full((4, 2), 0.5)
    experts(x, torch.tensor([[0, 1]]).expand(4, 2), weights)
    assert calls == [4, 4, 0]


def test_all_units_kept_is_exact() -> None:
    model = net("Mixtral")
    made = rw.unfused(model, BATCH)
    stats = rw.collect(made, [BATCH], joint=True, example=BATCH)
    pins = {name: "nystrom:24" for name, site in stats.sites.items() if site.kind == "hidden"}
    plan = rw.choose(made, stats, keep={"params": 10**9}, pin=pins, include=["*experts*"])
    small = rw.factorise(made, plan, stats)
    with torch.no_grad():
        torch.testing.assert_close(small(**BATCH).logits, model(**BATCH).logits, rtol=1e-3, atol=1e-3)

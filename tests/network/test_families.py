"""Hidden units and heads in ten families of transformers: exact at full size, counted, stored, loaded, generating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.inputs.torchvision_shim import allow_torchvision
from rankwise.layers.kinds import Role

transformers = pytest.importorskip("transformers", exc_type=ImportError)
allow_torchvision()

WORDS: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**WORDS, **SIZES, "num_key_value_heads": 2}
# The model's class, its configuration's, the sizes, and the numbers of its MLPs and of its attentions.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, 2, 2),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, 2, 2),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, 2, 2),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED, 2, 2),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        2,
        2,
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**WORDS, "hidden_size": 32, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 64},
        2,
        2,
    ),
    "bert": ("BertModel", "BertConfig", {"vocab_size": 64, **SIZES}, 2, 2),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 64,
            "decoder_start_token_id": 0,
            "d_model": 32,
            "d_ff": 80,
            "d_kv": 8,
            "num_layers": 2,
            "num_heads": 4,
        },
        4,
        6,
    ),
    "vit": ("ViTModel", "ViTConfig", {**SIZES, "image_size": 32, "patch_size": 8}, 2, 2),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {**WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80, "num_mel_bins": 8}
        | {"max_source_positions": 20, "max_target_positions": 20, "decoder_start_token_id": 1},
        4,
        4,  # not those that attend to the encoder: it has other positions
    ),
}
# Gate and up apart, queries, keys and values too; and all fused. The others run in the slow tests: seconds each.
QUICK = ("llama", "phi3")
ALL = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]


def made(name: str) -> nn.Module:
    model, config, sizes, *_ = FAMILIES[name]
    torch.manual_seed(0)
    network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return network.eval()


def batch(name: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 64, (2, 12), generator=generator)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 40, generator=generator), "decoder_input_ids": tokens}
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if name == "t5" else {})}


@pytest.mark.parametrize("name", ALL)
def test_narrower(name: str, tmp_path: Path) -> None:
    model, data = made(name), [batch(name, seed) for seed in range(6)]
    stats = rw.collect(model, data, joint=True)
    joined = {name: site for name, site in stats.sites.items() if site.feeders}
    heads = [name for name, site in joined.items() if site.role is Role.HEADS]
    assert (len(joined) - len(heads), len(heads)) == FAMILIES[name][3:]
    assert all(site.dense_because is None for site in joined.values())
    options: dict[str, Any] = {"include": list(joined), "rule": "energy:share=1.0"}
    formats = {Role.HIDDEN: "nystrom", Role.HEADS: "head_svd"}
    pins = {name: (formats[site.role], (site.in_features,)) for name, site in joined.items()}
    whole = rw.factorise(model, rw.choose(model, stats, pin=pins, **options), stats)
    with torch.no_grad():
        torch.testing.assert_close(whole(**data[0])[0], model(**data[0])[0], atol=1e-5, rtol=1e-4)
    plan = rw.choose(model, stats, keep={"linear": 0.8}, pin=dict.fromkeys(heads[::2], ("head_svd", (24,))))
    assert {"nystrom", "head_svd"} <= {row.format for row in plan.rows}
    small = rw.factorise(model, plan, stats)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    assert rw.find(small, stats.sites.example).total_macs == plan.planned["macs"]
    rw.save(small, tmp_path / "out")
    loaded = rw.load(made(name), tmp_path / "out", example=data[0])
    with torch.no_grad():
        assert torch.equal(loaded(**data[0])[0], small(**data[0])[0])
    if hasattr(small, "generate") and "input_ids" in data[0]:
        made_up = small.generate(data[0]["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(
            made_up, loaded.generate(data[0]["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        )

"""Ten tiny families of transformers with random weights, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rankwise.inputs.torchvision_shim import allow_torchvision

allow_torchvision()  # before transformers, which imports it for some networks

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


def made(name: str) -> nn.Module:
    """A network of a family, the same each time."""
    import transformers

    model, config, sizes, *_ = FAMILIES[name]
    torch.manual_seed(0)
    network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return network.eval()


def batch(name: str, seed: int) -> dict[str, torch.Tensor]:
    """Two samples for a family."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 64, (2, 12), generator=generator)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 40, generator=generator), "decoder_input_ids": tokens}
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if name == "t5" else {})}

"""Families of transformers for the honesty benchmark, from tiny configurations with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.honesty_case import Batch, Case, images, named, rows, tokens
from rankwise.inputs.torchvision_shim import import_torchvision

WORDS = 96
TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
LLAMA = {**TEXT, "num_key_value_heads": 2, "vocab_size": WORDS}
PICTURE = {**TEXT, "image_size": 24, "patch_size": 8}
# A vocabulary of these sizes is a large part of the parameters, and stays dense.
COUNTED = ({"macs": 0.92}, {"macs": 0.85})


def made(family: str, config: str, **settings: Any) -> Any:
    """A constructor; transformers is imported when it is called, and reads pictures by torchvision."""

    def build() -> nn.Module:
        import_torchvision()
        import transformers

        transformers.logging.set_verbosity_error()
        return getattr(transformers, family)(getattr(transformers, config)(**settings))

    return build


def clip() -> nn.Module:
    import_torchvision()
    import transformers

    text = {**TEXT, "vocab_size": WORDS, "max_position_embeddings": 16, "eos_token_id": WORDS - 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=32)
    return transformers.CLIPModel(config)


def _masked(samples: int, length: int) -> Batch:
    """Sentences of different lengths, padded at their ends."""

    def make(generator: torch.Generator) -> Tensor:
        lengths = torch.randint(length // 2, length + 1, (samples, 1), generator=generator)
        return (torch.arange(length) < lengths).long()

    return make


def _case(name: str, build: Any, batch: Batch, **options: Any) -> Case:
    options = {"budgets": COUNTED, "batches": 8, **options}
    return Case(name=name, kind="transformers", build=build, batch=batch, **options)


words = tokens(32, 12, WORDS)
pictures = named(pixel_values=images(32, 3, 24, 24))
pairs = named(input_ids=words, decoder_input_ids=tokens(32, 7, WORDS))
CASES = (
    _case(
        "GPT-2",
        made("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=48, n_layer=2, n_head=4, n_positions=32),
        named(input_ids=words),
    ),
    _case("Llama", made("LlamaForCausalLM", "LlamaConfig", **LLAMA), named(input_ids=words)),
    _case("Mistral", made("MistralForCausalLM", "MistralConfig", **LLAMA), named(input_ids=words), quick=False),
    _case("Qwen2", made("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), named(input_ids=words), quick=False),
    _case(
        "Mixtral",
        made("MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4, num_experts_per_tok=2),
        named(input_ids=words),
        budgets=({"macs": 0.97}, {"macs": 0.94}),
    ),
    _case("BERT", made("BertForMaskedLM", "BertConfig", **TEXT, vocab_size=WORDS), named(input_ids=words)),
    _case(
        "BERT, padded",
        made("BertForSequenceClassification", "BertConfig", **TEXT, vocab_size=WORDS),
        named(input_ids=words, attention_mask=_masked(32, 12)),
    ),
    _case(
        "DistilBERT",
        made(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=WORDS,
            dim=48,
            hidden_dim=96,
            n_layers=2,
            n_heads=4,
        ),
        named(input_ids=words),
    ),
    _case(
        "RoBERTa", made("RobertaModel", "RobertaConfig", **TEXT, vocab_size=WORDS), named(input_ids=words), quick=False
    ),
    _case(
        "T5",
        made(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=WORDS,
            d_model=48,
            d_kv=12,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        pairs,
    ),
    _case(
        "BART",
        made(
            "BartForConditionalGeneration",
            "BartConfig",
            vocab_size=WORDS,
            d_model=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_position_embeddings=32,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
        ),
        pairs,
        quick=False,
    ),
    _case("ViT", made("ViTForImageClassification", "ViTConfig", **PICTURE), pictures),
    _case(
        "DINOv2",
        made(
            "Dinov2Model",
            "Dinov2Config",
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=24,
            patch_size=8,
        ),
        pictures,
    ),
    _case("SigLIP", made("SiglipVisionModel", "SiglipVisionConfig", **PICTURE), pictures, quick=False),
    _case("CLIP", clip, named(input_ids=words, pixel_values=images(32, 3, 24, 24))),
    _case(
        "Whisper",
        made(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            vocab_size=WORDS,
            num_mel_bins=16,
            d_model=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_source_positions=20,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            decoder_start_token_id=1,
        ),
        named(input_features=lambda g: rows(32, 16, 40)(g), decoder_input_ids=tokens(32, 7, WORDS)),
    ),
    _case(
        "wav2vec 2.0",
        made(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            **TEXT,
            conv_dim=(24, 24),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
        ),
        lambda g: rows(32, 400)(g),
        quick=False,
    ),
    _case(
        "ResNet",
        made(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            layer_type="basic",
        ),
        named(pixel_values=images(32, 3, 32, 32)),
        quick=False,
    ),
)

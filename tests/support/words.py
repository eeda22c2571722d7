"""A tiny language model as transformers stores it, with a tokenizer of whole words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from rankwise.inputs.torchvision_shim import allow_torchvision

allow_torchvision()  # before transformers, which imports it for some networks

_ANIMALS, _PLACES = ("cat", "dog", "bird"), ("mat", "log")
_SENTENCES = [f"the {one} {does} on the {place} ." for one in _ANIMALS for does in ("sat", "ran") for place in _PLACES]
TEXT = " ".join(_SENTENCES * 6)


def save_model(folder: Path, words: int | None = None, **options: Any) -> Path:
    """Save a Llama with random weights and its tokenizer; `words` is the network's vocabulary if it is another one."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = Tokenizer(models.WordLevel(unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["[unk]", "[end]"]))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]", eos_token="[end]")
    sizes = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=words or len(fast),
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=fast.eos_token_id,
        **{**sizes, **options},
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

"""Perplexity of a language model: how surprised it is by each next token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..running.batches import made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb
from .tallies import NO_SAMPLES

# The classes of transformers that predict the next token end so.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")


def predicts_next(model: nn.Module, batch: Any) -> bool:
    """Whether a network of transformers predicts the next token, and a batch holds tokens.

    Example:
        >>> predicts_next(nn.Linear(2, 2), {})
        False
    """
    named = any(cls.__name__.endswith(_CAUSAL) for cls in type(unwrap(model)).__mro__)
    return named and isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor)


@verb
def perplexity(model: nn.Module, batches: Iterable[Any]) -> float:
    """`exp(-mean log p(token | the tokens before it in its row))`, over all tokens but the first of each row.

    Args:
        model: returns an output with `logits`, samples x positions x vocabulary.
        batches: mappings with `input_ids`, and `attention_mask` where there is padding, whose tokens do not count; or
            pairs of such a mapping and labels, which are not read.

    Raises:
        ValueError: naming the batch without tokens, or if no token has one before it.
    """
    model = unwrap(model)
    surprise, count = 0.0, 0
    with pristine(model):
        for index, given in enumerate(made(batches)):
            batch = given[0] if isinstance(given, (tuple, list)) else given
            if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
                raise ValueError(f"batch {index} has no input_ids; perplexity is of language models")
            tokens = batch["input_ids"]
            logits = call(model, batch, index=index).logits
            own = -logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
            mask = batch.get("attention_mask")
            real = own.new_ones(own.shape) if mask is None else (mask[:, 1:] * mask[:, :-1]).to(own.dtype)
            surprise += float((own * real).double().sum())
            count += int(real.sum())
    if not count:
        raise ValueError(NO_SAMPLES)
    return math.exp(surprise / count)

"""How surprised a language model is by each next token: perplexity, by rows or by a sliding window over a text.

Letters: N rows, T positions of a row, V words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batches import made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb
from .tallies import NO_SAMPLES

# The classes of transformers that predict the next token end so.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
# In a batch of windows: which tokens count. It is not passed to the network.
SCORED = "scored"
# Tokens of the windows that run together.
TOGETHER = 4096


def predicts_next(model: nn.Module, batch: Any) -> bool:
    """Whether a network of transformers predicts the next token, and a batch holds tokens.

    Example:
        >>> predicts_next(nn.Linear(2, 2), {})
        False
    """
    named = any(cls.__name__.endswith(_CAUSAL) for cls in type(unwrap(model)).__mro__)
    return named and isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor)


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """What the next tokens cost a network in nats, row by row.

    Attributes:
        nats_N: `-sum log p(token | the tokens before it)` of each row.
        tokens_N: how many tokens that sums over.

    Example:
        >>> said = Surprise(nats_N=torch.tensor([0.0, 4 * math.log(3)]), tokens_N=torch.tensor([4.0, 4.0]))
        >>> round(said.perplexity**2, 5), said.tokens
        (3.0, 8)
    """

    nats_N: Tensor
    tokens_N: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that were predicted."""
        return int(self.tokens_N.sum())

    @property
    def perplexity(self) -> float:
        """`exp(sum of nats / sum of tokens)`."""
        return math.exp(float(self.nats_N.double().sum() / self.tokens_N.double().sum()))


@verb
def surprise(model: nn.Module, batches: Iterable[Any]) -> Surprise:
    """`-sum log p(token | the tokens before it in its row)` of every row, over all tokens but the first.

    Args:
        model: returns an output with `logits`, samples x positions x vocabulary.
        batches: mappings with `input_ids`, and `attention_mask` where there is padding, whose tokens do not count; or
            pairs of such a mapping and labels, which are not read. Those of `windows` say which tokens count.

    Raises:
        ValueError: naming the batch without tokens, or if no token has one before it.
    """
    model = unwrap(model)
    nats: list[Tensor] = []
    tokens: list[Tensor] = []
    with pristine(model):
        for index, given in enumerate(made(batches)):
            batch = given[0] if isinstance(given, (tuple, list)) else given
            if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
                raise ValueError(f"batch {index} has no input_ids; perplexity is of language models")
            numbers_NT = batch["input_ids"]
            passed = {name: value for name, value in batch.items() if name != SCORED}
            own_NT = next_token_nats(call(model, passed, index=index).logits, numbers_NT)
            mask = batch.get("attention_mask")
            real_NT = own_NT.new_ones(own_NT.shape) if mask is None else (mask[:, 1:] * mask[:, :-1]).to(own_NT)
            if SCORED in batch:
                real_NT = real_NT * batch[SCORED][:, 1:].to(own_NT)
            nats.append((own_NT * real_NT).double().sum(1).cpu())
            tokens.append(real_NT.double().sum(1).cpu())
    if not sum(float(each.sum()) for each in tokens):
        raise ValueError(NO_SAMPLES)
    return Surprise(nats_N=torch.cat(nats), tokens_N=torch.cat(tokens))


def next_token_nats(logits_NTV: Tensor, numbers_NT: Tensor) -> Tensor:
    """`-log p` of every token but the first, N x (T - 1)."""
    logs = logits_NTV[:, :-1].float().log_softmax(-1)
    return -logs.gather(-1, numbers_NT[:, 1:, None].to(logs.device))[..., 0]


@verb
def perplexity(model: nn.Module, batches: Iterable[Any]) -> float:
    """`exp(-mean log p(token | the tokens before it in its row))`, over all tokens but the first of each row.

    Args and errors are those of `surprise`.
    """
    return surprise(model, batches).perplexity


def windows(
    numbers: Sequence[int] | Tensor, *, context: int, stride: int | None = None, start: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Batches of overlapping windows over one text; each token counts once, in the first window that holds it.

    `p(token t)` is conditional on the tokens before it in its window: at least `context - stride` of them, after the
    first window. The first token of a window without a start token has none before it: if windows do not overlap, it
    does not count.

    Args:
        numbers: the tokens of the text, T.
        context: tokens of a window, the start token included; at least 2.
        stride: tokens by which each window moves on, 1 to those of a window; by default half of them.
        start: the start token, put before each window, so that the first token of the text counts too; None for none.

    Raises:
        ValueError: for a text of fewer than two tokens (one with a start token), or sizes outside their range.

    Example:
        >>> (batch,) = windows([5, 6, 7], context=2, stride=1)
        >>> batch["input_ids"].tolist(), batch["scored"].tolist()
        ([[5, 6], [6, 7]], [[1, 1], [0, 1]])
    """
    text_T = torch.as_tensor(numbers, dtype=torch.int64).flatten()
    before = 0 if start is None else 1
    size = context - before
    if context < 2:
        raise ValueError(f"context is {context}; a window needs at least 2 tokens, one to predict and one before it")
    if len(text_T) < 2 - before:
        raise ValueError(f"the text has {len(text_T)} tokens; perplexity needs one token with one before it")
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise ValueError(f"stride is {stride}; it must be from 1 to the {size} tokens of text in a window")
    begins = [0, *range(stride, max(len(text_T) - size + stride, stride), stride)]
    done, groups = 0, dict[int, list[tuple[Tensor, Tensor]]]()
    for begin in begins:
        row_T = text_T[begin : begin + size]
        scored_T = (torch.arange(begin, begin + len(row_T)) >= done).long()
        done = begin + len(row_T)
        if start is not None:
            row_T, scored_T = (torch.cat([torch.tensor([one]), each]) for one, each in ((start, row_T), (0, scored_T)))
        groups.setdefault(len(row_T), []).append((row_T, scored_T))
    together = max(1, TOGETHER // context)
    for rows in groups.values():
        for place in range(0, len(rows), together):
            some = rows[place : place + together]
            yield {"input_ids": torch.stack([row for row, _ in some]), SCORED: torch.stack([own for _, own in some])}

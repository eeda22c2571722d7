"""What Bolaco judges plans by: perplexity with a little of the divergence from the dense network; and on which text.

Letters: N rows, T positions, V words, S networks.

Source: Ji, Xiang, Li, Chen, Liu, Zhang, "Adaptive Feature-based Low-Rank Compression of Large Language Models via
Bayesian Optimization", 2024, arXiv 2405.10616.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batches import made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb
from .measures import Measure
from .next_token import next_token_nats, surprise
from .tallies import NO_SAMPLES

WEIGHT = 1e-3


def regularised_perplexity(dense: nn.Module, weight: float = WEIGHT) -> Measure:
    """`perplexity(small) + weight * D(small || dense)`, for `Trials`; the divergence summed over each row's tokens.

    `D = sum over tokens and words of q log(q / p)`, q of the small network and p of the dense one, averaged over rows.

    Args:
        dense: the network that plans are for.
        weight: of the divergence.

    Raises:
        ValueError: for a weight below 0.
    """
    if weight < 0:
        raise ValueError(f"weight is {weight}; it must be at least 0")
    dense = unwrap(dense)

    def judge(small: nn.Module, batches: Iterable[Any]) -> float:
        nats = tokens = apart = 0.0
        rows = 0
        with pristine(dense), pristine(unwrap(small)):
            for index, batch in enumerate(made(batches)):
                numbers_NT = batch["input_ids"]
                logits_NTV = call(unwrap(small), batch, index=index).logits
                mask = batch.get("attention_mask")
                real_NT = torch.ones_like(numbers_NT) if mask is None else mask
                pairs_NT = real_NT[:, 1:] * real_NT[:, :-1]
                nats += float((next_token_nats(logits_NTV, numbers_NT) * pairs_NT).double().sum())
                tokens += float(pairs_NT.sum())
                rows += len(numbers_NT)
                if weight:
                    apart += _divergence(logits_NTV, call(dense, batch, index=index).logits, real_NT)
        if not tokens:
            raise ValueError(NO_SAMPLES)
        return math.exp(nats / tokens) + weight * apart / rows

    return Measure(key="regularised_perplexity", title=f"perplexity + {weight:g} divergence", higher=False, judge=judge)


@verb
def most_sensitive(networks: Iterable[nn.Module], batches: Iterable[Any], count: int) -> Tensor:
    """The rows of text whose perplexity varies most among some networks, such as those of random plans.

    Plans are told apart by fewer rows then: Bolaco takes the 100 rows of the largest variance among 20 random plans.

    Args:
        networks: at least two; they are run one after the other, so a generator may make them.
        batches: of tokens, as for `evaluate.surprise`; every network runs over all of them.
        count: rows to take.

    Returns:
        Numbers of the rows, counted over all batches, ascending.

    Raises:
        ValueError: for fewer than two networks, or a count that is not from 1 to the number of rows.
    """
    held = list(batches)
    measured = [surprise(network, held) for network in networks]
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} networks say nothing of how perplexity varies; give at least two")
    rows_SN = torch.stack([(own.nats_N / own.tokens_N.clamp_min(1)).exp() for own in measured])
    if not 1 <= count <= rows_SN.shape[1]:
        raise ValueError(f"count is {count}; it must be from 1 to the {rows_SN.shape[1]} rows")
    return rows_SN.var(0).topk(count).indices.sort().values


def _divergence(small_NTV: Tensor, dense_NTV: Tensor, real_NT: Tensor) -> float:
    """`sum over real positions of sum_v q (log q - log p)`."""
    q, p = small_NTV.float().log_softmax(-1), dense_NTV.float().log_softmax(-1)
    return float(((q.exp() * (q - p)).sum(-1) * real_NT).double().sum())

"""The embeddings and heads of language models: which sites stay dense unless a pattern names them.

Their rows are few numbers for each item of a vocabulary. An average over all of them says little of the rare ones, and
the embedding is read by all that follows: a low rank there costs more than its error says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from .kinds import kind_of
from .site import Role, Site

BY_NAME = "unless included by name"
# A vocabulary has many times as many items as a layer has inputs; below this ratio a head is an ordinary layer.
LEAST_RATIO = 2


def guarded(sites: Sequence[Site], model: nn.Module) -> list[Site]:
    """The sites, each embedding and each head of a language model with the reason why it stays dense by default.

    A head is known by structure: it is tied to an embedding, or it is a linear layer that has as many outputs as an
    embedding has rows, at least twice as many as inputs, and whose outputs are the inputs of no site after it. The
    embedding must be the one with the most
    rows, or be looked up as often as the head gives scores: a classifier of two classes is no head of the two rows that
    tell two sentences apart.

    Args:
        sites: in the order of their first call.
        model: the network.
    """
    rows = [layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)]
    tokens = {(site.in_features, site.rows) for site in sites if not site.multiplies}
    result = []
    for place, site in enumerate(sites):
        reason = None
        if kept := kind_of(site).unless_named:
            reason = f"{kept} {BY_NAME}"
        elif site.role is Role.LAYER and not site.is_convolution and site.out_features in rows and _is_many(site):
            last = all(later.weight_shape[1] != site.out_features for later in sites[place + 1 :])
            if last and (site.out_features == max(rows) or (site.out_features, site.rows) in tokens):
                reason = f"head of a language model: stays dense {BY_NAME}"
        result.append(replace(site, unless_named=reason))
    return result


def _is_many(site: Site) -> bool:
    return site.out_features >= LEAST_RATIO * site.in_features

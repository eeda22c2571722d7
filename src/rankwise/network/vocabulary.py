"""The embeddings and heads of language models: which sites stay dense unless a pattern names them.

An average over a vocabulary says little about its rare items, and every later layer reads the embedding: a low rank
there costs more than its error says.
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
    """The sites, in the order of their first call; embeddings and heads of language models with their reason.

    A head is known by structure: it is tied to an embedding, or it is a linear layer with as many outputs as an
    embedding has rows, at least twice as many as inputs, and no later site has that many inputs. The embedding must be
    the one with the most rows, or be looked up as often as the head gives scores: a classifier of two classes does not
    belong to the two rows that tell two sentences apart.
    """
    rows = [layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)]
    tokens = {(site.in_features, site.rows) for site in sites if not site.multiplies}
    result = []
    for place, site in enumerate(sites):
        reason = None
        if kept := kind_of(site).unless_named:
            reason = f"{kept} {BY_NAME}"
        elif (
            site.role is Role.LAYER
            and not site.is_convolution
            and site.out_features in rows
            and site.out_features >= LEAST_RATIO * site.in_features
        ):
            last = all(later.weight_shape[1] != site.out_features for later in sites[place + 1 :])
            if last and (site.out_features == max(rows) or (site.out_features, site.rows) in tokens):
                reason = f"head of a language model: stays dense {BY_NAME}"
        result.append(replace(site, unless_named=reason))
    return result

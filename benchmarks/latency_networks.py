"""Networks to plan for time; their weights are random, which does not affect speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.inputs.torchvision_shim import import_torchvision

TOKENS = 128
# Layers, width, width of the feed-forward part, heads and vocabulary of BERT-base.
BERT = (12, 768, 3072, 12, 30522)


class Layer(nn.Module):
    """One layer of a BERT encoder, of plain linear layers."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        mixed = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = self.first(x + self.output(mixed))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """An encoder of the size of BERT-base."""

    def __init__(self) -> None:
        super().__init__()
        layers, width, inner, heads, words = BERT
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(TOKENS, width))
        self.layers = nn.Sequential(*[Layer(width, inner, heads) for _ in range(layers)])

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.words(ids) + self.places)


def bert() -> tuple[nn.Module, Any]:
    """BERT-base from transformers if installed, else an encoder of its size; 128 tokens."""
    ids = torch.randint(BERT[4], (1, TOKENS))
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        return Encoder().eval(), ids
    config = BertConfig()
    config.return_dict = False
    return BertModel(config, add_pooling_layer=False).eval(), {"input_ids": ids}


def _torchvision(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        return getattr(import_torchvision().models, name)(weights=None).eval(), torch.randn(1, 3, 224, 224)

    return build


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: _torchvision(name) for name in ("resnet18", "resnet50", "vit_b_16", "mobilenet_v2")},
    "bert_base": bert,
}

"""Which positions of a batch are padding, and which sites see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .calling import describe

Mask = str | Callable[[Any], Tensor]

_ENCODER, _DECODER = "attention_mask", "decoder_attention_mask"
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
# Layers in a decoder that read the encoder's positions.
_CROSS = re.compile(
    r"(encoder_attn|EncDecAttention|cross_?attn|cross_?attention)\w*\.(\w+\.)?(k|v|k_proj|v_proj|key|value)$"
)


class Padding:
    """Real positions of batches, by site.

    Args:
        mask: the name of an argument of the network, or a function of a batch; either gives numbers [samples,
            positions], 0 for padding. By default `attention_mask` of a mapping, and `decoder_attention_mask` for its
            decoder.

    Example:
        >>> batch = {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> Padding().real(batch)("encoder.fc", torch.zeros(1, 3, 8))
        tensor([[ True,  True, False]])
    """

    def __init__(self, mask: Mask | None = None) -> None:
        self.mask = mask

    def real(self, batch: Any) -> Callable[[str, Tensor], Tensor | None]:
        """A function of a site's name and input that gives the batch's real rows, [samples, positions]; None for all.

        Raises:
            ValueError: if the batch has no argument of that name, or the mask is not a matrix.
        """
        # On the host, where rows are picked; read once for all sites.
        encoder, decoder = (None if mask is None else mask.cpu() for mask in self._masks(batch))
        everywhere = {id(mask): bool(mask.all()) for mask in (encoder, decoder) if mask is not None}

        def of(site: str, x: Tensor) -> Tensor | None:
            mask = encoder
            if decoder is not None and "decoder" in site.split(".") and not _CROSS.search(site):
                mask = decoder
            for each in (mask, encoder, decoder):
                if each is not None and (x.shape[:2] == each.shape or (x.dim() == 2 and len(x) == each.numel())):
                    return None if everywhere[id(each)] else each
            return None

        return of

    def _masks(self, batch: Any) -> tuple[Tensor | None, Tensor | None]:
        if self.mask is None:
            if not isinstance(batch, Mapping):
                return None, None
            encoder, decoder = _usual(batch.get(_ENCODER)), _usual(batch.get(_DECODER))
            inputs = next((batch[key] for key in _DECODED if key in batch), None)
            if decoder is None and isinstance(inputs, Tensor) and inputs.dim() >= 2:  # all its positions are real
                decoder = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
            return encoder, decoder
        if isinstance(self.mask, str):
            if not isinstance(batch, Mapping) or self.mask not in batch:
                raise ValueError(
                    f"mask={self.mask!r}: the batch {describe(batch)} has no argument of that name; name one of a "
                    f"mapping, or pass a function of the batch"
                )
            mask = batch[self.mask]
        else:
            mask = self.mask(batch)
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise ValueError(f"mask= must give a tensor [samples, positions], got {describe(mask)}")
        return mask != 0, None


def _usual(mask: Any) -> Tensor | None:
    """A matrix mask as truth values; other masks, such as those added to scores, do not mark rows."""
    return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None

"""Recognise by content the samples that a network was made from, so that the same ones do not judge it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bytes of a digest. By chance a digest is shared between a million samples and a million others with probability 0.6,
# between a thousand and ten thousand with 1e-5.
DIGEST = 5
# At most so many digests are stored: the smallest ones, which are a random sample.
STORED = 1024


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many samples were seen before.

    Attributes:
        checked: samples that could be compared: all, unless more were seen than are stored.
    """

    same: int
    checked: int
    samples: int

    def __str__(self) -> str:
        if self.checked == self.samples:
            return f"{self.same:,} of {self.samples:,} samples"
        return f"{self.same:,} of {self.checked:,} samples that can be compared ({self.samples:,} in all)"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Samples that were seen, as short digests of their content.

    Attributes:
        digests: of all samples, or the smallest of them.
        samples: how many digests there were.

    Example:
        >>> calibration = Seen.of([torch.eye(4)])
        >>> print(calibration.among([torch.eye(4)[:3] * torch.tensor([[1.0], [1.0], [2.0]])]))
        2 of 3 samples
    """

    digests: frozenset[bytes]
    samples: int

    @classmethod
    def of(cls, batches: Iterable[Any]) -> Seen:
        """The samples in batches, equal ones once."""
        found = frozenset(digests_of(batches))
        return cls(digests=found, samples=len(found))

    def among(self, batches: Iterable[Any]) -> Overlap:
        """How many samples of these batches were seen."""
        return self.overlap(list(digests_of(batches)))

    def overlap(self, digests: list[bytes]) -> Overlap:
        """How many of the samples with these digests were seen."""
        checked = digests
        if len(self.digests) < self.samples:  # only the smallest are known: larger ones cannot be compared
            checked = [digest for digest in digests if digest <= max(self.digests)]
        same = sum(digest in self.digests for digest in checked)
        return Overlap(same=same, checked=len(checked), samples=len(digests))

    def text(self) -> str:
        """For a file: the number of samples and the smallest digests; 7 bytes for each."""
        stored = sorted(self.digests)[:STORED]
        return f"{self.samples}:{base64.b64encode(b''.join(stored)).decode()}"

    @classmethod
    def from_text(cls, text: str) -> Seen:
        """The inverse of `text`.

        Raises:
            ValueError: if the text is not a number and digests.
        """
        count, _, coded = text.partition(":")
        try:
            samples, whole = int(count), base64.b64decode(coded, validate=True)
        except (ValueError, binascii.Error):
            samples, whole = -1, b""
        digests = frozenset(whole[start : start + DIGEST] for start in range(0, len(whole), DIGEST))
        if len(whole) != DIGEST * len(digests) or samples < len(digests) or (samples > 0) != bool(digests):
            raise ValueError(f"seen samples are a number and digests in base64, not {text[:40]!r}")
        return cls(digests=digests, samples=samples)


def digests_of(batches: Iterable[Any]) -> Iterator[bytes]:
    """The start of every sample's sha256, over its row in each tensor of the batch that has one row per sample.

    Positions that `attention_mask` marks as padding are left out: they depend on the batch, not on the sample.
    """
    for batch in batches:
        tensors = [tensor.detach().cpu() for tensor in _tensors(batch) if tensor.dim() > 0]
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        samples = len(tensors[0]) if tensors else 0
        rows = [tensor for tensor in tensors if len(tensor) == samples]
        for place in range(samples):
            digest = hashlib.sha256()
            for tensor in rows:
                row = tensor[place]
                if isinstance(mask, Tensor) and mask.shape == tensor.shape[:2]:
                    row = row[mask[place].cpu().bool()]
                digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            yield digest.digest()[:DIGEST]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)

"""Samples to train on: one by one, in a new order each epoch, with a part held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from ..running.batches import Batches, read_sample
from ..running.calling import describe, map_tensors, samples_in, tensors_in

Prepare = Callable[[Any], Any]
CACHE_BYTES = 4 << 30


class Samples:
    """Samples by number.

    Args:
        read: returns the samples of some numbers as a batch.
        count: number of samples.
        labels: one for each sample, or None.
        prepare: what is done to each batch, such as normalising bytes.

    Example:
        >>> samples = Samples.of([torch.zeros(4, 3), torch.ones(2, 3)])
        >>> len(samples), samples.batch(torch.tensor([0, 5]))[0].tolist()
        (6, [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    """

    def __init__(
        self, read: Callable[[Tensor], Any], count: int, labels: Tensor | None = None, prepare: Prepare | None = None
    ) -> None:
        if labels is not None and len(labels) != count:
            raise ValueError(f"there are {len(labels)} labels for {count} samples; one for each is needed")
        self._read, self._count, self.labels, self._prepare = read, count, labels, prepare

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        labels: Tensor | Sequence[int] | None = None,
        prepare: Prepare | None = None,
        cache_limit: int = CACHE_BYTES,
    ) -> Samples:
        """Take samples in any of the usual shapes.

        Args:
            data: a batch (tensors are indexed as they are: bytes stay bytes), an iterable of batches (kept in memory),
                or a map-style `Dataset` of inputs (read when needed).
            labels: class numbers, one for each sample, in the order of `data`.
            prepare: what is done to each batch, such as normalising bytes.
            cache_limit: the most bytes of batches kept in memory.

        Raises:
            ValueError: if batches differ in shape or are too large, or there are more or fewer labels than samples.
        """
        if isinstance(data, Samples):
            return data
        known = None if labels is None else torch.as_tensor(labels)
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            dataset: Any = data

            def read(numbers: Tensor) -> Any:
                return default_collate([read_sample(dataset, int(number)) for number in numbers])

            return cls(read, len(dataset), known, prepare)
        whole = _together(Batches.of(data), cache_limit)
        count = samples_in(whole)
        return cls(lambda n: map_tensors(lambda t: t[n] if _has(t, count) else t, whole), count, known, prepare)

    def __len__(self) -> int:
        return self._count

    def batch(self, numbers: Tensor) -> tuple[Any, Tensor | None]:
        """The samples of these numbers as the network takes them, and their labels."""
        inputs = self._read(numbers)
        inputs = inputs if self._prepare is None else self._prepare(inputs)
        return inputs, None if self.labels is None else self.labels[numbers]

    def split(self, held_out: float, seed: int, most: int = 1024) -> tuple[Tensor, Tensor]:
        """Numbers of the samples to train on, and of those held out.

        Args:
            held_out: share to hold out; at least one sample, at most `most`.
            seed: chooses them.

        Raises:
            ValueError: for a share that is not between 0 and 1, or if nothing is left to train on.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is {held_out}; it is a share of the samples between 0 and 1")
        count = min(max(round(held_out * len(self)), 1), most)
        if count >= len(self):
            raise ValueError(f"{count} of {len(self)} samples are held out and none is left to train on; give more")
        order = permutation(len(self), seed, "held out")
        return order[count:].sort().values, order[:count].sort().values

    def batches(self, numbers: Tensor, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """These samples in batches."""
        for part in numbers.split(size):
            yield self.batch(part)


def derived(seed: int, *what: object) -> int:
    """A seed for one thing of many: an epoch's order, a step.

    Example:
        >>> derived(0, "step", 1) == derived(0, "step", 1) != derived(0, "step", 2)
        True
    """
    text = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def permutation(count: int, seed: int, *what: object) -> Tensor:
    """A random order, the same for the same arguments."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, *what)))


def _has(tensor: Tensor, count: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == count


def _together(data: Batches, limit: int) -> Any:
    """All batches as one; tensors without a dimension of samples come from the first batch."""
    kept: list[Any] = []
    size = 0
    for batch in data:
        size += sum(t.nbytes for t in tensors_in(batch))
        if size > limit:
            raise ValueError(
                f"the batches need more than {limit:,} bytes in memory (cache_limit); pass a Dataset of single "
                "samples, or bytes with prepare="
            )
        # A loader may fill the same tensors again.
        kept.append(batch if data.is_kept else map_tensors(Tensor.clone, batch))
    if len(kept) == 1:
        return kept[0]
    counts = [samples_in(batch) for batch in kept]
    parts = [list(tensors_in(batch)) for batch in kept]
    merged: list[Tensor] = []
    for number, first in enumerate(parts[0]):
        if not _has(first, counts[0]):
            merged.append(first)
            continue
        try:
            merged.append(torch.cat([tensors[number] for tensors in parts]))
        except (RuntimeError, IndexError) as error:
            other = next(batch for batch in kept if describe(batch) != describe(kept[0]))
            raise ValueError(
                f"batches of shape {describe(kept[0])} and {describe(other)} do not hold samples of one shape; pad or "
                "crop them to one"
            ) from error
    rest = iter(merged)
    return map_tensors(lambda _: next(rest), kept[0])

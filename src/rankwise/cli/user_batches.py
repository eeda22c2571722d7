"""Batches that a function of the user's own makes: what is the input, what are the labels, where to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .data import Data, count, cut


def is_dataset(made: Any) -> bool:
    """Whether it is a map-style data set of single samples, not an iterable of batches."""
    from torch.utils.data import Dataset, IterableDataset

    if isinstance(made, IterableDataset):
        raise ValueError("an IterableDataset gives single samples; return a DataLoader over it instead")
    return isinstance(made, Dataset)


def from_batches(made: Any, spec: str, samples: int | None) -> Data:
    """Data from an iterable of batches: inputs, or `(inputs, labels)`.

    Args:
        made: what the user's function returned.
        spec: how the user named it.
        samples: take the first that many; None for all.

    Raises:
        ValueError: where it is no iterable, or has no batches.
    """
    if not isinstance(made, Iterable):
        raise ValueError(f"{spec} returned a {type(made).__name__}, not a Dataset or an iterable of batches")
    # An iterator can be run over once; its batches are kept, the others come again.
    source: Iterable[Any] = list(_first_samples(made, samples)) if isinstance(made, Iterator) else made

    def passes() -> Iterator[tuple[Any, Any]]:
        yield from _first_samples(source, samples)

    first = next(passes(), None)
    if first is None:
        raise ValueError(f"{spec} returned no batches")
    return Data(
        name=spec,
        samples=sum(count(inputs) for inputs, _ in passes()) if isinstance(source, Sequence) else None,
        labelled=first[1] is not None,
        classes=None,
        prepared="batches as the function returns them",
        _passes=passes,
    )


def _first_samples(batches: Iterable[Any], samples: int | None) -> Iterator[tuple[Any, Any]]:
    """Batches as (inputs, labels), cut after `samples` samples."""
    left = samples
    for batch in batches:
        pair = _pair(batch)
        if left is None:
            yield pair
            continue
        yield cut(pair[0], left), cut(pair[1], left)
        left -= count(pair[0])
        if left <= 0:
            return


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    return batch, None

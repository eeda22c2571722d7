"""Calibration data: any re-iterable of batches (`calling` says what a batch is)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .calling import DataError, describe, map_tensors, samples_in, tensors_in
from .randomness import Randomness

_log = logging.getLogger("rankwise")


class Batches:
    """Calibration data for any number of passes; every batch must be finite.

    Passes may differ in values (shuffled, augmented), but not in sizes: that is an error, which names the batch.

    Example:
        >>> batches = Batches.of([torch.zeros(2, 3), torch.zeros(1, 3)])
        >>> len(batches), batches.samples
        (2, 3)
    """

    def __init__(self, source: Iterable[Any], axis: int | None = None) -> None:
        self.axis = axis  # dimension along which samples lie; None while unknown
        self._source = source
        self._sizes: list[int] | None = None  # samples of each batch, known after one whole pass

    @classmethod
    def of(cls, data: Any, *, cache_limit: int = 2 << 30) -> Batches:
        """Take calibration data in any of the usual shapes.

        Args:
            data: a list or tuple of batches, a `DataLoader`, `Batches`, or any other iterable that can be iterated
                again; a single tensor or mapping is one batch. A one-shot iterator (a generator) is kept in memory,
                which is logged.
            cache_limit: the most bytes of tensors kept for a one-shot iterator.

        Raises:
            ValueError: there is no batch, the data is not iterable, or a generator exceeds the limit.

        Example:
            >>> Batches.of(torch.zeros(4, 3)).samples
            4
        """
        if isinstance(data, Batches):
            return data
        if data is None:
            raise ValueError(f"{_EMPTY}, got None")
        if isinstance(data, (torch.Tensor, Mapping)):
            return cls([data])
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            raise ValueError(
                f"{type(data).__name__} yields single samples, not batches; pass a torch.utils.data.DataLoader over it"
            )
        if isinstance(data, (str, bytes)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
            raise ValueError(
                f"calibration data must be an iterable of batches, got {type(data).__name__}; pass a list of tensors, "
                "a DataLoader, or call the function that makes them"
            )
        if isinstance(data, Iterator):
            data = _cached(data, cache_limit)
        if _length(data) == 0:
            raise ValueError(f"{_EMPTY}, got an empty {type(data).__name__}")
        return cls(data)

    def __len__(self) -> int:
        """The number of batches; data of unknown length is read once."""
        length = _length(self._source)
        return self._counted()[0] if length is None else length

    def __bool__(self) -> bool:
        return True  # a truth test would call __len__, which may read all data

    @property
    def is_kept(self) -> bool:
        """Whether the batches are in memory, so that a loader cannot overwrite one while it makes the next."""
        return isinstance(self._source, (list, tuple))

    @property
    def samples(self) -> int:
        """The number of samples along `axis` (by default 0); data that is not in memory is read once to count them."""
        return self._counted()[1]

    def along(self, axis: int) -> Batches:
        """The same data with its samples along another dimension: the second for networks with time first."""
        if axis == self.axis:
            return self
        same = Batches(self._source, axis)
        same._sizes = self._sizes if axis == (self.axis or 0) else None
        return same

    def first(self) -> Any:
        """The first batch, checked like every other."""
        return next(iter(self))

    def __iter__(self) -> Iterator[Any]:
        sizes: list[int] = []
        for index, batch in enumerate(made(self._source, "calibration batch")):
            sizes.append(self._size(index, batch))
            if self._sizes is not None and index == len(self._sizes):
                raise DataError(f"calibration batch {index} is one more than {self._changed()}")
            if not all(map(is_sound, tensors_in(batch))):
                raise DataError(
                    f"calibration batch {index} {describe(batch)} holds values that are not finite; "
                    "remove the sample or repair the preprocessing"
                )
            yield batch
        if not sizes:
            if self._sizes:
                raise DataError(
                    f"the {type(self._source).__name__} given as calibration data yields batches only once; "
                    "pass a list or a DataLoader"
                )
            raise DataError(f"{_EMPTY}, got {type(self._source).__name__}")
        self._check_sizes(sizes)
        self._sizes = sizes

    def _size(self, index: int, batch: Any) -> int:
        try:
            return samples_in(batch, self.axis or 0)
        except ValueError as error:
            raise DataError(f"calibration batch {index}: {error}") from None

    def _check_sizes(self, sizes: list[int]) -> None:
        """Raise if a pass had fewer batches or other samples than the one before; their order may differ."""
        if self._sizes is None or (len(sizes), sum(sizes)) == (len(self._sizes), sum(self._sizes)):
            return
        if len(sizes) < len(self._sizes):
            raise DataError(f"calibration batch {len(sizes)} is missing: this pass has fewer than {self._changed()}")
        pairs = enumerate(zip(sizes, self._sizes, strict=True))
        index, (now, then) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
        raise DataError(f"calibration batch {index} holds {now} samples, but {then} in {self._changed()}")

    def _changed(self) -> str:
        assert self._sizes is not None
        return (
            f"the pass before ({len(self._sizes)} batches, {sum(self._sizes)} samples); all passes over the "
            f"{type(self._source).__name__} must hold the same samples: pass list(data), or repair the loader"
        )

    def _counted(self) -> tuple[int, int]:
        if self._sizes is None:
            if self.is_kept:
                self._sizes = [self._size(index, batch) for index, batch in enumerate(self._source)]
            else:
                with Randomness(nn.Identity()).kept():  # a DataLoader draws a seed in every pass
                    for _ in self:
                        pass
        assert self._sizes is not None
        return len(self._sizes), sum(self._sizes)


def made(source: Iterable[Any], what: str = "batch") -> Iterator[Any]:
    """The batches of a source; an error while one is made names its number.

    Args:
        what: a batch is called in the message.

    Raises:
        ValueError: with the original error as its cause; our own errors about data, and running out of memory, are
            passed on.

    Example:
        >>> list(made(torch.zeros(2) / number for number in (1, 2)))
        [tensor([0., 0.]), tensor([0., 0.])]
    """
    index = 0
    try:
        for batch in source:
            yield batch
            index += 1
    except (DataError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        first = f"{type(error).__name__}: {error}".rstrip(": ")
        raise DataError(
            f"{what} {index} could not be made: the {type(source).__name__} raised {first}; repair the loader, or "
            "leave the sample out"
        ) from error


_EMPTY = "the calibration data holds no batch; pass at least one batch of the kind that the model is called with"


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, or form a mask added to scores: 0 or minus infinity."""
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return True
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


def read_sample(dataset: Any, number: int, name: str | None = None) -> Any:
    """One sample of a map-style data set; an error while it is read names it.

    Args:
        name: of the data set in the message; by default its class.

    Raises:
        ValueError: with the original error as its cause.
    """
    try:
        return dataset[number]
    except (DataError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"sample {number} of {name or type(dataset).__name__} could not be read: {type(error).__name__}: {error}; "
            "repair the data set, or leave the sample out"
        ) from error


def inputs_to_blame(batch: Any) -> str:
    """A sentence for messages if a batch itself is not finite; "" if it is."""
    sound = all(map(is_sound, tensors_in(batch)))
    return "" if sound else f". The inputs {describe(batch)} hold NaN or infinity themselves"


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # no length, or a DataLoader over an IterableDataset, which has one in name only
        return None


def _cached(iterator: Iterator[Any], limit: int) -> list[Any]:
    kept: list[Any] = []
    size = 0
    for batch in made(iterator, "calibration batch"):
        size += sum(t.numel() * t.element_size() for t in tensors_in(batch))
        if size > limit:
            raise ValueError(
                f"the calibration data is a one-shot iterator of more than {limit:,} bytes (cache_limit), and it is "
                "needed more than once; pass a list or a DataLoader, or raise cache_limit in Batches.of"
            )
        kept.append(map_tensors(torch.Tensor.clone, batch))  # the iterator may fill the same tensors again
    _log.info("kept %d calibration batches (%s bytes) of a one-shot iterator in memory", len(kept), f"{size:,}")
    return kept


class Again:
    """An iterable that starts over each time.

    Args:
        start: makes an iterator from the beginning.

    Example:
        >>> twice = Again(lambda: iter("ab"))
        >>> [*twice, *twice]
        ['a', 'b', 'a', 'b']
    """

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()


class _InputsOnly:
    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self._loader):
            if not isinstance(batch, (tuple, list)) or not batch:
                raise DataError(
                    f"batch {index} is a {type(batch).__name__}, not (inputs, labels); "
                    "pass the data without inputs_only"
                )
            yield batch[0]


class _SizedInputsOnly(_InputsOnly):
    def __len__(self) -> int:
        assert isinstance(self._loader, Sized)
        return len(self._loader)


def inputs_only(loader: Iterable[Any]) -> Iterable[Any]:
    """A view of `(inputs, labels)` batches that yields the inputs; re-iterable if the loader is.

    Args:
        loader: yields tuples or lists whose first element is what the model is called with.

    Raises:
        ValueError: while iterating, at a batch that is not a tuple or list.

    Example:
        >>> [batch.shape[0] for batch in inputs_only([(torch.zeros(2, 3), torch.zeros(2))])]
        [2]
    """
    if isinstance(loader, Iterator):
        return iter(_InputsOnly(loader))
    return _SizedInputsOnly(loader) if isinstance(loader, Sized) else _InputsOnly(loader)

"""Batches from the user's own function: what is the input, what are the labels, where to stop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .data import Data, count, cut

if TYPE_CHECKING:
    from torch import nn

WAYS = ("auto", "inputs", "pairs")
LABELS = ("labels", "label", "targets", "target", "y")

Split = Callable[[Any], tuple[Any, Any]]  # a batch as inputs and labels


def is_dataset(made: Any) -> bool:
    """Whether this is a map-style data set of single samples, not an iterable of batches."""
    from torch.utils.data import Dataset, IterableDataset

    if isinstance(made, IterableDataset):
        raise ValueError("an IterableDataset gives single samples; return a DataLoader over it instead")
    return isinstance(made, Dataset)


def from_batches(
    made: Any, spec: str, samples: int | None, way: str = "auto", network: nn.Module | None = None
) -> Data:
    """Data from an iterable of batches: inputs, or `(inputs, labels)`.

    Args:
        made: what the user's function returned.
        spec: what the user called it.
        samples: how many to take, the first ones; None for all. Batches of several inputs are taken whole.
        way: "inputs", "pairs" of inputs and labels, or "auto" for what the network takes.
        network: will be called with the batches; without one, two things in a batch are a pair.

    Raises:
        ValueError: if it is not an iterable, has no batches, or the network takes them neither way.
    """
    if not isinstance(made, Iterable):
        raise ValueError(f"{spec} returned a {type(made).__name__}, not a Dataset or an iterable of batches")
    # An iterator runs only once: its batches are kept. Other iterables give theirs again.
    source: Iterable[Any] = list(_enough(_told(made, spec), samples)) if isinstance(made, Iterator) else made
    first = next(_told(source, spec), None)
    if first is None:
        raise ValueError(f"{spec} returned no batches")
    split, told = _split(first, way, network, spec)

    def passes() -> Iterator[tuple[Any, Any]]:
        yield from _first_samples(map(split, _told(source, spec)), samples)

    return Data(
        name=spec,
        samples=sum(count(inputs) for inputs, _ in passes()) if isinstance(source, Sequence) else None,
        labelled=split(first)[1] is not None,
        classes=None,
        prepared=f"batches as the function returns them{told}",
        _passes=passes,
    )


def _split(batch: Any, way: str, network: nn.Module | None, spec: str) -> tuple[Split, str]:
    """How batches are read, and a clause that says so if they could be read another way."""
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        if key is None or way == "inputs" or (way == "auto" and not _takes(network, _without(batch, key))):
            return _all_inputs, ""
        told = f", {key!r} read as labels (--batches inputs for an input)"
        return lambda each: (_without(each, key), each[key]), told
    two = isinstance(batch, (tuple, list)) and len(batch) == 2
    if way == "pairs" and not two:
        raise ValueError(f"--batches pairs: {spec} returns no pairs of inputs and labels; leave the option out")
    if way == "inputs" or not two:
        return _all_inputs, ""
    told = ", the second of each pair read as labels (--batches inputs for an input)"
    alone = _takes(network, _pair(batch)[0])
    if way == "pairs" or network is None:
        return _pair, told
    both = _takes(network, batch)
    if not alone and not both:
        raise ValueError(
            f"{spec}: {type(network).__name__} takes neither the first of each pair nor both as inputs; it is called "
            f"with a tensor, model(*tuple) or model(**mapping)"
        )
    if alone and (not both or _like_labels(batch[1], count(_pair(batch)[0]), network)):
        return _pair, told
    return _all_inputs, ", both of each pair read as inputs (--batches pairs for inputs and labels)"


def _all_inputs(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 1 and not isinstance(batch[0], (tuple, list)):
        return batch[0], None
    return batch, None


def _pair(batch: Any) -> tuple[Any, Any]:
    # A list of pictures is one argument; a tuple is several.
    return ([batch[0]] if isinstance(batch[0], list) else batch[0]), batch[1]


def _without(batch: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != key}


def _takes(network: nn.Module | None, inputs: Any) -> bool:
    """Whether the network can be called with these inputs."""
    from ..running.calling import call
    from ..running.pristine import pristine

    if network is None:
        return False
    try:
        with pristine(network):
            call(network, inputs)
    except ValueError:
        return False
    return True


def _like_labels(value: Any, samples: int, network: nn.Module) -> bool:
    """Whether the second of a pair looks like labels: by the argument's name, or as one whole number per sample."""
    names = list(inspect.signature(network.forward).parameters)
    if len(names) > 1 and names[1] in LABELS:
        return True
    shape, whole = tuple(getattr(value, "shape", ())), "int" in str(getattr(value, "dtype", ""))
    return whole and shape in ((samples,), (samples, 1))


def _told(batches: Iterable[Any], spec: str) -> Iterator[Any]:
    """The batches; an error in making one, or something that is not a batch, is reported with its number."""
    from ..running.batches import made
    from ..running.calling import DataError

    for index, batch in enumerate(made(batches, f"{spec}: batch")):
        try:
            count(batch)
        except ValueError as error:
            raise DataError(f"{spec}: batch {index}: {error}") from error
        yield batch


def _enough(batches: Iterator[Any], samples: int | None) -> Iterator[Any]:
    """Batches of an iterator until there are enough samples, whichever way they are read."""
    left = samples
    for batch in batches:
        yield batch
        if left is not None and (left := left - count(batch)) <= 0:
            return


def _first_samples(batches: Iterable[tuple[Any, Any]], samples: int | None) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels, cut after `samples` samples. Several inputs may have different sizes, so they stay whole."""
    left = samples
    for inputs, labels in batches:
        if left is None or isinstance(inputs, (tuple, list)):
            yield inputs, labels
        else:
            yield cut(inputs, left), cut(labels, left)
        if left is not None and (left := left - count(inputs)) <= 0:
            return

"""Data as batches that can be iterated repeatedly, and the options of reading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data is read: the options that every command with DATA shares.

    Of text, the first `skip` rows in the order of the seed are left to another use.
    """

    transform: str | None = None
    size: int | None = None
    normalise: str = "auto"
    batch: int = 64
    length: int | None = None
    root: Path = Path("data")
    split: str | None = None
    seed: int = 0
    skip: int = 0
    batches: str = "auto"
    example_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class Data:
    """Batches that can be iterated repeatedly.

    Args:
        name: what the user called it.
        samples: number of samples; None if only a pass over them would tell.
        left: rows of text that were not taken.
        classes: number of class folders; None for labels stored as numbers.
        labels: what messages call the labels.
        prepared: how inputs were made, for people.
        real: False for random inputs, which only have a shape: a network's answers to them mean nothing.
        stands: the example that stands for the data, and the dimension of the samples; see `of_network`.
    """

    name: str
    samples: int | None
    labelled: bool
    classes: int | None
    prepared: str
    _passes: Callable[[], Iterator[tuple[Any, Any]]] = field(repr=False)
    real: bool = True
    left: int = 0
    labels: str = "labels"
    stands: tuple[Any, int] | None = field(default=None, repr=False)

    def of_network(self, network: nn.Module, whole: bool = False) -> Data:
        """The same data with the example that stands for it: if `whole`, the whole first batch (--example-batch)."""
        from ..running.batches import Batches
        from ..running.example import with_example

        batches = Batches.of(self.inputs)
        example, batches = with_example(network, batches, batches.first() if whole else None)
        # `samples` counted along the first dimension: steps, if that one is time
        samples = batches.samples if batches.axis and self.samples is not None else self.samples
        return replace(self, stands=(example, batches.axis or 0), samples=samples)

    @property
    def pairs(self) -> Iterable[tuple[Any, Any]]:
        """Batches of inputs and labels; None for data without labels."""
        return _Again(self._passes)

    @property
    def inputs(self) -> Iterable[Any]:
        """Batches of inputs alone: what calibration may see."""
        return _Again(lambda: (inputs for inputs, _ in self._passes()))

    def label_numbers(self, network: nn.Module) -> Tensor:
        """All labels; raises a ValueError that names the first one that is not a class of the network."""
        import torch

        from ..evaluate import Outputs
        from ..running.outputs import check_labels

        labels = torch.cat([labels for _, labels in self.pairs])
        if classes := Outputs.of(network, *next(iter(self.pairs))).classes:
            check_labels(labels, classes, self.labels)
        return labels

    def example(self, samples: int = 1) -> Any:
        """The example that stands for the data, or the first few samples, all of the first batch."""
        from ..running.calling import first_samples, samples_in

        example, axis = self.stands or (None, 0)
        if example is not None and samples == 1:
            return example
        for inputs, _ in self._passes():
            if (there := samples_in(inputs, axis)) < samples:
                raise ValueError(
                    f"--latency-batch {samples} is more than the {there} samples in the first batch of {self.name}; "
                    "raise --batch, or ask for fewer"
                )
            return first_samples(inputs, samples, axis)
        raise ValueError(f"{self.name} has no batches")


@dataclass(frozen=True)
class _Again:
    """An iterable that starts over each time."""

    start: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.start()


def count(inputs: Any) -> int:
    """Number of samples of a batch."""
    if isinstance(inputs, (Mapping, tuple, list)) and inputs:
        first = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
        return len(first) if isinstance(first, list) else count(first)
    if not hasattr(inputs, "shape"):
        empty = "empty " if isinstance(inputs, Sized) and not inputs else ""
        raise ValueError(f"the inputs of a batch are tensors, not an {empty}object of {type(inputs).__name__}")
    return int(inputs.shape[0]) if inputs.shape else 1


def cut(value: Any, length: int) -> Any:
    """The first `length` samples of a tensor, or of every tensor in a mapping or list."""
    if isinstance(value, Mapping):
        return {key: cut(item, length) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(cut(item, length) for item in value)
    return value[:length] if hasattr(value, "shape") and len(value.shape) > 0 else value


def example_input(shape: str, seed: int = 0) -> Tensor:
    """A random input of one sample, for counting without data; `shape` is `3,224,224`, without the batch."""
    import torch

    try:
        sides = [int(side) for side in shape.replace("x", ",").split(",")]
    except ValueError:
        sides = []
    if not sides or min(sides) < 1:
        raise ValueError(f"--input-shape {shape!r} is not a shape such as 3,224,224 (without the batch)")
    return torch.randn(1, *sides, generator=torch.Generator().manual_seed(seed))


def random_data(example: Tensor, batch: int) -> Data:
    """One batch of a random input (1 x ...), repeated, for counts and latency without data."""
    inputs = example.expand(batch, *example.shape[1:])
    shape = "x".join(map(str, example.shape[1:]))
    return Data(
        name=f"random inputs of {shape}",
        samples=batch,
        labelled=False,
        classes=None,
        prepared="no samples",
        _passes=lambda: iter([(inputs, None)]),
        real=False,
    )

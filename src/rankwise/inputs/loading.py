"""DATA on the command line: which samples, and how they become batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arrays import ARRAYS
from .data import Data, DataOptions, example_input
from .models import TORCHVISION, call_function, is_torchvision
from .pixels import Normalise, Step, of_one_depth, parse_normalise, parse_transform, white_of
from .sources import Source, from_arrays, from_dataset, from_folder, from_torchvision
from .text import TEXTS, from_text
from .timm_models import input_shape as timm_shape
from .timm_models import is_timm, preparation
from .user_batches import WAYS, from_batches, is_dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

KINDS = (
    "a folder of pictures, FILE.npz, FILE.npy, FILE.safetensors, FILE.pt, FILE.txt, FILE.jsonl, torchvision:NAME "
    "(torchvision:CIFAR10) or FILE.py:FUNCTION"
)
TORCHVISION_SHAPE = "3,224,224"
# Decoded pictures are kept for the next pass up to this many bytes.
CACHE_BYTES = 1 << 30


def load_data(
    spec: str,
    options: DataOptions,
    *,
    network: nn.Module | None = None,
    model: str = "",
    samples: int | None = None,
    default_split: str = "train",
) -> Data:
    """The data that `spec` names.

    Args:
        spec: DATA of the command line.
        options: how to read it.
        network: called with the data; decides what is an input, and which example stands for the data.
        model: MODEL of the command line; decides what `auto` means.
        samples: how many to take, chosen by the seed; None for all, in order.
        default_split: split of a named data set if the options name none.

    Raises:
        ValueError: if there is no such data, it is empty, or an option does not fit it.
    """
    steps = parse_transform(options.transform, options.size)
    split = options.split or default_split
    path = Path(spec)
    if options.batches not in WAYS:
        raise ValueError(f"--batches {options.batches!r} is not one of {', '.join(WAYS)}")
    if options.batch < 1 or (samples is not None and samples < 1):
        raise ValueError(f"--batch {options.batch} and --samples {samples} must be at least 1")
    source: Source | None
    if spec.startswith(TORCHVISION):
        source = from_torchvision(spec.removeprefix(TORCHVISION), options.root, split)
    elif path.is_dir():
        source = from_folder(path)
    elif path.suffix in TEXTS:
        made = from_text(path, model, network, options, samples)
        return made if network is None else made.of_network(network, options.example_batch)
    elif path.suffix in ARRAYS:
        if not path.is_file():
            raise ValueError(f"DATA {spec!r}: there is no file {path}")
        source = from_arrays(path, options.split or (default_split if default_split == "test" else None))
    elif ":" not in spec:
        raise ValueError(f"DATA {spec!r}: there is no such folder or file; DATA is {KINDS}")
    else:
        made = call_function(spec, "DATA", KINDS.rpartition(" or ")[0])
        source = from_dataset(made, spec) if is_dataset(made) else None
    if source is None:
        if steps or options.normalise != "auto":
            raise ValueError(
                f"{spec} returns batches ready for the network; --transform, --size and --normalise do not apply"
            )
        found = from_batches(made, spec, samples, options.batches, network)
    elif options.batches != "auto":
        raise ValueError(f"--batches {options.batches} is for functions that return batches, not for {spec}")
    else:
        found = _from_source(source, options, steps, samples, _Usual.of(model, network))
    return found if network is None else found.of_network(network, options.example_batch)


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """How pictures are prepared for a network unless options say otherwise: steps and `--normalise` of bytes."""

    steps: tuple[Step, ...] = ()
    normalise: str = "unit"

    @classmethod
    def of(cls, model: str, network: nn.Module | None) -> _Usual:
        """Of a model of the command line; a network of timm knows what it was trained with."""
        if is_torchvision(model):
            return cls(steps=parse_transform("resize=256,crop=224"), normalise="imagenet")
        if is_timm(model) and network is not None:
            steps, normalise = preparation(network)
            return cls(steps=parse_transform(steps), normalise=normalise)
        return cls()


def _from_source(
    source: Source, options: DataOptions, steps: tuple[Step, ...], samples: int | None, usual: _Usual
) -> Data:
    import torch

    read = _Cache(source)
    first = read(0)[0]
    picture = source.pictures or (white_of(first) is not None and first.ndim == 3)
    # Arrays hold inputs of one size already: they skip the usual resize of a pretrained network.
    is_array = any(ending in source.name for ending in ARRAYS)
    if not steps and picture and not is_array:
        steps = usual.steps
    normalise = _normalise(options.normalise, picture or white_of(first) is not None, usual)
    read.use(steps)
    order = list(range(source.samples))
    if samples is not None and samples < source.samples:
        order = torch.randperm(source.samples, generator=torch.Generator().manual_seed(options.seed))[:samples].tolist()

    def passes() -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(order), options.batch):
            items = [read(index) for index in order[start : start + options.batch]]
            labels = torch.tensor([label for _, label in items]) if source.labelled else None
            yield _batch([tensor for tensor, _ in items], normalise, source.name), labels

    shape = "x".join(map(str, read(order[0])[0].shape))
    transform = ",".join(map(str, steps))
    return Data(
        name=source.name,
        samples=len(order),
        labelled=source.labelled,
        classes=source.classes,
        labels=source.labels or source.name,
        prepared=f"{shape}, {transform or 'sizes as stored'}, normalised {normalise.name}",
        _passes=passes,
    )


def _normalise(text: str, bytes_stored: bool, usual: _Usual) -> Normalise:
    if text != "auto":
        return parse_normalise(text)
    if not bytes_stored:
        return parse_normalise("none")
    return parse_normalise(usual.normalise)


class _Cache:
    """Transformed samples by number, kept in memory as long as there is room."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.steps: tuple[Step, ...] = ()
        self.kept: dict[int, tuple[Tensor, int | None]] = {}
        self.room = CACHE_BYTES

    def use(self, steps: tuple[Step, ...]) -> None:
        """Transform samples by these steps from now on."""
        if steps:
            self.steps, self.kept, self.room = steps, {}, CACHE_BYTES

    def __call__(self, index: int) -> tuple[Tensor, int | None]:
        from ..running.calling import DataError

        if index in self.kept:
            return self.kept[index]
        try:
            tensor, label = self._read(index)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.source.name}, sample {index}: {error}") from error
        if tensor.nbytes <= self.room:
            self.kept[index] = tensor, label
            self.room -= tensor.nbytes
        return tensor, label

    def _read(self, index: int) -> tuple[Tensor, int | None]:
        tensor, label = self.source.get(index)
        if self.steps and tensor.ndim != 3:
            raise ValueError(f"--transform and --size are for pictures (C, H, W), it is {tuple(tensor.shape)}")
        for step in self.steps:
            tensor = step(tensor)
        return tensor, label


def _batch(tensors: Sequence[Tensor], normalise: Normalise, name: str) -> Tensor:
    import torch

    from ..running.calling import DataError

    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise DataError(
            f"{name} has inputs of different sizes ({shapes[0]} and {shapes[1]}), which do not go into one batch; "
            'give --size 224 or --transform "resize=256,crop=224"'
        )
    try:
        return normalise(torch.stack(of_one_depth(tensors)))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def load_example(
    data: Data | str | None, input_shape: str | None, options: DataOptions, model: str, network: nn.Module
) -> Any:
    """One input of the network: from the data, loaded or as DATA of the command line, else random numbers of a shape.

    Networks of torchvision and timm have a usual shape; a ValueError if nothing says what an input looks like.
    """
    if isinstance(data, Data):
        return data.example()
    if data is not None:
        return load_data(data, options, model=model, network=network).example()
    if input_shape is None and is_torchvision(model):
        input_shape = TORCHVISION_SHAPE
    if input_shape is None and is_timm(model):
        input_shape = timm_shape(network)
    if input_shape is None:
        raise ValueError("what does an input look like? Give --input-shape 3,224,224 (without the batch), or data")
    return example_input(input_shape, options.seed)

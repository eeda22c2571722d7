"""Where samples come from: a folder of pictures, an array file, a torchvision data set, the user's own data set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..network.patterns import near
from .arrays import Stored, arrays_in, tensor_of
from .pictures import PICTURES, pixels_of, read_picture
from .pixels import white_of

if TYPE_CHECKING:
    from torch import Tensor

INPUT_KEYS = ("images", "inputs", "x", "data")
LABEL_KEYS = ("labels", "y", "targets")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples by number.

    Args:
        name: what the user called it.
        samples: how many there are.
        get: the input of a sample (a tensor; pictures as bytes `(C, H, W)`), and its label or None.
        labelled: whether there are labels.
        classes: number of class folders; None for labels stored as numbers.
        labels: what messages call the labels; by default `name`.
        pictures: whether inputs are picture files; those in floats are on the 0..1 scale.
    """

    name: str
    samples: int
    get: Callable[[int], tuple[Tensor, int | None]]
    labelled: bool
    classes: int | None = None
    labels: str = ""
    pictures: bool = False


def from_folder(folder: Path) -> Source:
    """Pictures in a folder; class folders in it, sorted, give the labels."""
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and _pictures(child))
    flat = sorted(child for child in folder.iterdir() if _is_picture(child))
    if classes and flat:
        raise ValueError(
            f"{folder} holds pictures ({flat[0].name}) beside class folders ({classes[0].name}); "
            "a data folder is one or the other"
        )
    files: list[tuple[Path, int | None]] = [(file, None) for file in flat]
    files += [(file, label) for label, child in enumerate(classes) for file in _pictures(child)]
    if not files:
        raise ValueError(
            f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}), neither itself nor in class folders"
        )

    def get(index: int) -> tuple[Tensor, int | None]:
        file, label = files[index]
        return read_picture(file), label

    return Source(
        name=str(folder),
        samples=len(files),
        get=get,
        labelled=bool(classes),
        classes=len(classes) if classes else None,
        pictures=True,
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_picture(file))


def _is_picture(file: Path) -> bool:
    # macOS leaves "._name.jpg" beside name.jpg on foreign disks; that is not a picture.
    return file.suffix.lower() in PICTURES and not file.name.startswith(".") and file.is_file()


def as_tensor(value: Any) -> Tensor:
    """A Pillow picture as `(C, H, W)`; arrays and tensors as tensors."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "getbands"):
        return pixels_of(value)
    if isinstance(value, np.ndarray):
        return tensor_of(value, "the array")
    raise ValueError(f"an input is a {type(value).__name__}; Rankwise reads tensors, numpy arrays and Pillow pictures")


def from_arrays(file: Path, split: str | None) -> Source:
    """Inputs and labels in a file of arrays, found by name."""
    arrays = {name.lower(): array for name, array in arrays_in(file).items()}  # X and Y are as common as x and y
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    wanted = [f"{key}_{split}" for key in ("x", *INPUT_KEYS)] if split else []
    key = next((key for key in (*wanted, *INPUT_KEYS, "x_train") if key in arrays), next(iter(arrays)))
    suffix = f"_{key.rpartition('_')[2]}" if "_" in key else ""
    label_key = next((f"{name}{suffix}" for name in LABEL_KEYS if f"{name}{suffix}" in arrays), None)
    stored = arrays[key]
    stored.check()
    if len(stored.shape) < 2 or 0 in stored.shape:
        raise ValueError(
            f"{stored.where} has shape {stored.shape}; inputs need samples along the first dimension and numbers along "
            "the others"
        )
    if stored.kind == "b":
        raise ValueError(f"{stored.where} holds booleans, which networks do not take; save array.astype('float32')")
    inputs = _channels_first(stored.read())
    labels = None if label_key is None else _labels(arrays[label_key], len(inputs), key)

    def get(index: int) -> tuple[Tensor, int | None]:
        return inputs[index], None if labels is None else labels[index]

    return Source(
        name=f"{file} ({key})",
        samples=len(inputs),
        get=get,
        labelled=labels is not None,
        labels=arrays[label_key].where if label_key else "",
    )


def _channels_first(inputs: Tensor) -> Tensor:
    """Pixels `(N, H, W, C)` as `(N, C, H, W)`, and `(N, H, W)` with one channel; anything else unchanged."""
    if white_of(inputs) is None:
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    channels = (1, 3, 4)
    if inputs.ndim == 4 and inputs.shape[3] in channels and inputs.shape[1] not in channels:
        return inputs.permute(0, 3, 1, 2)
    return inputs


def _labels(stored: Stored, samples: int, inputs: str) -> list[int]:
    """Class numbers, one for each input."""
    if math.prod(stored.shape) != samples or stored.shape[:1] != (samples,):
        raise ValueError(
            f"{stored.where} has shape {stored.shape}, but {inputs!r} holds {samples} samples; labels are {samples} "
            "class numbers, one for each input"
        )
    labels = stored.read().flatten()
    if labels.is_floating_point():
        cut = (labels != labels.floor()).nonzero()
        place = int(cut[0]) if len(cut) else 0
        raise ValueError(
            f"{stored.where} is of type {labels.dtype}, number {place} is {float(labels[place]):g}; labels are "
            f"{samples} class numbers: save array.astype('int64')"
        )
    numbers: list[int] = labels.long().tolist()
    _refuse_negative(numbers, stored.where)
    return numbers


def _refuse_negative(labels: Iterable[int], where: str) -> None:
    """Labels count classes from 0; -100 is torch's mark for samples to ignore."""
    for place, label in enumerate(labels):
        if label < 0 and label != -100:
            raise ValueError(
                f"{where}: number {place} is {label}; classes are numbered from 0 (-100 marks what to ignore)"
            )


def from_torchvision(name: str, root: Path, split: str) -> Source:
    """A torchvision data set that is already on disk; `split` becomes whichever argument its class has for it."""
    from .torchvision_shim import import_torchvision

    datasets = import_torchvision().datasets
    known = [key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))]
    if name not in known:
        raise ValueError(f"torchvision has no data set {name!r}; near names: {near(name, known)}")
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": str(root)} if "root" in parameters else {}
    if "download" in parameters:
        options["download"] = False
    if "split" in parameters:
        options["split"] = split
    elif "train" in parameters:
        if split not in ("train", "val", "test"):
            raise ValueError(f"torchvision:{name} has the splits train and test, not {split!r}")
        options["train"] = split == "train"
    elif "image_set" in parameters:
        options["image_set"] = split
    try:
        dataset = kind(**options)
    except TypeError as error:
        raise ValueError(
            f"torchvision:{name} needs arguments that only you know ({_first_line(error)}); "
            "write a FILE.py:FUNCTION that returns the data set"
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        options = {key: value for key, value in options.items() if key not in ("root", "download")}
        arguments = ", ".join(f"{key}={value!r}" for key, value in {**options, "download": True}.items())
        raise ValueError(
            f"torchvision:{name} is not under --root {root} ({_first_line(error)}). "
            f"Rankwise downloads nothing; get it once with torchvision.datasets.{name}({str(root)!r}, {arguments})"
        ) from error
    return from_dataset(dataset, f"torchvision:{name} ({split})")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def from_dataset(dataset: Sequence[Any], name: str) -> Source:
    """A map-style data set of inputs or of `(input, label)` pairs."""
    from ..running.batches import read_sample

    if len(dataset) == 0:
        raise ValueError(f"{name} is empty")
    first = read_sample(dataset, 0, name)
    paired = isinstance(first, (tuple, list)) and len(first) == 2
    labelled = paired and _is_label(first[1])

    def get(index: int) -> tuple[Tensor, int | None]:
        item = read_sample(dataset, index, name)
        if paired and not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise ValueError(f"it is a {type(item).__name__}, but the first sample is a pair (input, label)")
        if labelled and not _is_label(item[1]):
            raise ValueError(f"its label is {item[1]!r}, but the first sample has a whole number")
        label = int(item[1]) if labelled else None
        _refuse_negative([] if label is None else [label], "its labels")
        return as_tensor(item[0] if paired else item), label

    return Source(name=name, samples=len(dataset), get=get, labelled=labelled)


def _is_label(value: Any) -> bool:
    if isinstance(value, (bool, int, float)):
        return type(value) not in (bool, float)
    return getattr(value, "ndim", None) == 0 and "int" in str(getattr(value, "dtype", ""))

"""Where samples come from: a folder of pictures, an array file, a torchvision data set, the user's own data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
INPUT_KEYS = ("images", "inputs", "x", "data")
LABEL_KEYS = ("labels", "y", "targets")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples by number.

    Args:
        name: what the user called it.
        samples: how many there are.
        get: the input of a sample (a tensor; pictures as bytes `(C, H, W)`) and its label, None without labels.
        labelled: whether there are labels.
        classes: number of class folders the labels were counted from, None where the labels were stored as numbers.
    """

    name: str
    samples: int
    get: Callable[[int], tuple[Tensor, int | None]]
    labelled: bool
    classes: int | None = None


def from_folder(folder: Path) -> Source:
    """Pictures of a folder; where it has class folders, their sorted order gives the labels."""
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
        name=str(folder), samples=len(files), get=get, labelled=bool(classes), classes=len(classes) if classes else None
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_picture(file))


def _is_picture(file: Path) -> bool:
    # macOS leaves "._name.jpg" beside name.jpg on foreign disks; that is no picture.
    return file.suffix.lower() in PICTURES and not file.name.startswith(".") and file.is_file()


def read_picture(file: Path) -> Tensor:
    """The picture of a file as bytes, `(3, H, W)`."""
    image = _pillow()
    try:
        with image.open(file) as picture:
            return as_tensor(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a picture that can be read, or is cut short: {error}") from error


def as_tensor(value: Any) -> Tensor:
    """A picture of Pillow as bytes `(C, H, W)`; arrays and tensors as tensors."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "getbands"):
        value = value if value.mode in ("L", "RGB") else value.convert("RGB")
        pixels = np.array(value)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    raise ValueError(f"an input is a {type(value).__name__}; Rankwise reads tensors, numpy arrays and Pillow pictures")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install 'rankwise[vision]'") from error
    return Image


def from_arrays(file: Path, split: str | None) -> Source:
    """Inputs and labels of a `.npz` or `.safetensors` file, by the names of its arrays."""
    arrays = {name.lower(): array for name, array in _read_arrays(file).items()}  # X and Y are as usual as x and y
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    wanted = [f"{key}_{split}" for key in ("x", *INPUT_KEYS)] if split else []
    key = next((key for key in (*wanted, *INPUT_KEYS, "x_train") if key in arrays), next(iter(arrays)))
    suffix = f"_{key.rpartition('_')[2]}" if "_" in key else ""
    label_key = next((f"{name}{suffix}" for name in LABEL_KEYS if f"{name}{suffix}" in arrays), None)
    inputs = _channels_first(as_tensor(arrays[key]))
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(
            f"{file}: {key!r} has shape {tuple(inputs.shape)}; inputs need samples along the first dimension"
        )
    labels = None if label_key is None else _labels(as_tensor(arrays[label_key]), len(inputs), f"{file}: {label_key!r}")

    def get(index: int) -> tuple[Tensor, int | None]:
        return inputs[index], None if labels is None else labels[index]

    return Source(name=f"{file} ({key})", samples=len(inputs), get=get, labelled=labels is not None)


def _read_arrays(file: Path) -> dict[str, Tensor | np.ndarray[Any, Any]]:
    import zipfile

    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (SafetensorError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix}, or is cut short: {error}") from error


def _channels_first(inputs: Tensor) -> Tensor:
    """Bytes `(N, H, W, C)` as `(N, C, H, W)`, and `(N, H, W)` with one channel; anything else is taken as it is."""
    import torch

    if inputs.dtype != torch.uint8:
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    channels = (1, 3, 4)
    if inputs.ndim == 4 and inputs.shape[3] in channels and inputs.shape[1] not in channels:
        return inputs.permute(0, 3, 1, 2)
    return inputs


def _labels(labels: Tensor, samples: int, where: str) -> list[int]:
    flat = labels.flatten() if labels.numel() == len(labels) else labels
    if flat.shape != (samples,) or flat.is_floating_point():
        raise ValueError(
            f"{where} has shape {tuple(labels.shape)} and type {labels.dtype}; "
            f"labels are {samples} class numbers, one for each input"
        )
    return [int(label) for label in flat]


def from_torchvision(name: str, root: Path, split: str) -> Source:
    """A data set of torchvision that is already on disk; `split` becomes the argument the data set has for it."""
    from ..torchvision_shim import import_torchvision

    datasets = import_torchvision().datasets
    known = [key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))]
    if name not in known:
        near = get_close_matches(name, known, n=5, cutoff=0.4) or known[:5]
        raise ValueError(f"torchvision has no data set {name!r}; near names: {', '.join(near)}")
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
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty")
    first = dataset[0]
    paired = isinstance(first, (tuple, list)) and len(first) == 2
    labelled = paired and _is_label(first[1])

    def get(index: int) -> tuple[Tensor, int | None]:
        item = dataset[index]
        return as_tensor(item[0] if paired else item), int(item[1]) if labelled else None

    return Source(name=name, samples=len(dataset), get=get, labelled=labelled)


def _is_label(value: Any) -> bool:
    if isinstance(value, (bool, float)):
        return False
    if isinstance(value, int):
        return True
    return getattr(value, "ndim", None) == 0 and "int" in str(getattr(value, "dtype", ""))

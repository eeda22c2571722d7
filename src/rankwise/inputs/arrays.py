"""Arrays in a file: `.npz`, `.npy`, `.safetensors`, `.pt`. Headers are checked before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zipfile

    import numpy as np
    from torch import Tensor

ARRAYS = (".npz", ".npy", ".safetensors", ".pt", ".pth")
ALONE = "data"  # name of the array in a file that holds one without a name
MEMORY = 64 << 30  # assumed where the system does not report its own

# NumPy's letter for a kind of type -> what such arrays hold, and what to do about it.
_ODD = {
    "O": ("Python objects", "which can run any code; stack them into one array of numbers (np.stack)"),
    "U": ("text", "not numbers; number the words or classes (np.unique(names, return_inverse=True)[1])"),
    "S": ("text", "not numbers; number the words or classes (np.unique(names, return_inverse=True)[1])"),
    "M": ("dates", "not numbers; save what the network takes, such as array.astype('int64')"),
    "m": ("durations", "not numbers; save what the network takes, such as array.astype('int64')"),
    "V": ("records of several fields", "not numbers; save each field as an array of its own"),
    "c": ("complex numbers", "which no picture or feature is; write a FILE.py:FUNCTION where the network takes them"),
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An array in a file, not read yet.

    Args:
        where: file and name, for messages.
        shape: as its header says.
        kind: NumPy's letter for its kind of type: "f", "i", "u", "b", or one that is refused.
    """

    where: str
    shape: tuple[int, ...]
    kind: str
    _read: Callable[[], Tensor] = field(repr=False)

    def check(self) -> None:
        """Raise a ValueError for a type that does not hold real numbers, saying what to save instead."""
        if self.kind in _ODD:
            what, fix = _ODD[self.kind]
            raise ValueError(f"{self.where} holds {what}, {fix}")

    def read(self) -> Tensor:
        """The array as a tensor; raises as `check` does."""
        self.check()
        return self._read()


def arrays_in(file: Path) -> dict[str, Stored]:
    """The arrays of a file by name.

    Raises:
        ValueError: if the file cannot be read, or an array is larger than the file or the memory of this machine.
    """
    readers = {".npz": _npz, ".npy": _npy, ".safetensors": _safetensors}
    return readers.get(file.suffix, _checkpoint)(file)


def _npy(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        shape, dtype = _header(opened, size, f"{file}")
    return {ALONE: Stored(where=f"{file}", shape=shape, kind=_kind(dtype), _read=partial(_load_npy, file))}


def _npz(file: Path) -> dict[str, Stored]:
    import zipfile

    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as opened:
                    shape, dtype = _header(opened, member.file_size, f"{file}: {name!r}")
                read = partial(_load_npz, file, member, f"{file}: {name!r}")
                found[name] = Stored(where=f"{file}: {name!r}", shape=shape, kind=_kind(dtype), _read=read)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise _unreadable(file, error) from error
    return found


def _header(opened: IO[bytes], size: int, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type in the header of an array; the bytes after it must be as many."""
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(opened)
        if version not in readers:  # for names of fields in other alphabets
            raise ValueError(f"it is of version {version} of the format; save plain numbers")
        shape, _, dtype = readers[version](opened)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{where} is not a NumPy array, or is cut short: {error}") from error
    claimed = math.prod(shape) * dtype.itemsize
    check_memory(claimed, where, shape)
    if dtype.kind != "O" and claimed != (held := size - opened.tell()):
        raise ValueError(
            f"{where} should hold {claimed:,} bytes by its header (shape {shape}, {dtype}), but {held:,} are there: "
            "the file is cut short or damaged; save it again"
        )
    return shape, dtype


def check_memory(size: int, where: str, shape: tuple[int, ...]) -> None:
    """Raise a ValueError for an array that does not fit into the memory of this machine."""
    if size > (there := memory()):
        raise ValueError(
            f"{where} of shape {shape} needs {size:,} bytes, this machine has {there:,}; save fewer samples, or write "
            "a FILE.py:FUNCTION that returns batches"
        )


def memory() -> int:
    """Bytes of memory that this machine has."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return MEMORY
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _kind(dtype: np.dtype[Any]) -> str:
    return "V" if dtype.names or dtype.subdtype else dtype.kind


def _load_npy(file: Path) -> Tensor:
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise _unreadable(file, error) from error
    return tensor_of(array, f"{file}")


def _load_npz(file: Path, member: zipfile.ZipInfo, where: str) -> Tensor:
    import lzma
    import zipfile
    import zlib

    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as opened:
            array = npy.read_array(opened, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise _unreadable(file, error) from error
    return tensor_of(array, where)


def tensor_of(array: np.ndarray[Any, Any], where: str) -> Tensor:
    """An array of numbers as a tensor; bytes, 16-bit pictures, floats and booleans keep their type, the rest is int64.

    Raises:
        ValueError: for numbers that do not fit into a type of torch.
    """
    import numpy as np
    import torch

    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # byte order of this machine
    if array.dtype.kind in "iu" and array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim > 2):
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{where} holds {array.max()}, which is larger than any int64; save smaller numbers")
        array = array.astype(np.int64, copy=False)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise ValueError(f"{where} is of type {array.dtype}, which torch does not have; save array.astype('float32')")
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _safetensors(file: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                shape, type_name, where = tuple(part.get_shape()), part.get_dtype(), f"{file}: {name!r}"
                kind = "b" if type_name == "BOOL" else "f" if type_name == "BF16" else type_name[0].lower()
                found[name] = Stored(where=where, shape=shape, kind=kind, _read=partial(_load_tensor, file, name))
    except SafetensorError as error:
        raise _unreadable(file, error) from error
    return found


def _load_tensor(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _checkpoint(file: Path) -> dict[str, Stored]:
    """One tensor, a pair of inputs and labels, or tensors by name, written by `torch.save`."""
    import zipfile

    import torch
    from torch import Tensor

    from .checkpoints import read_checkpoint

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            check_memory(sum(member.file_size for member in archive.infolist()), f"{file}", ())
    content = read_checkpoint(file)
    if isinstance(content, Tensor):
        content = {ALONE: content}
    elif isinstance(content, (tuple, list)) and len(content) == 2:
        content = dict(zip(("inputs", "labels"), content, strict=True))
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{file} holds a {type(content).__name__}; as DATA it holds a tensor, a pair (inputs, labels), or a "
            "dictionary such as {'images': ..., 'labels': ...}"
        )
    found = {}
    for name, value in content.items():
        where = f"{file}: {name!r}"
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            kind = "c" if value.is_complex() else "b" if value.dtype == torch.bool else "f"
            check_memory(value.numel() * value.element_size(), where, shape)
            found[str(name)] = Stored(where=where, shape=shape, kind=kind, _read=partial(_plain, value, where))
    return found


def _plain(tensor: Tensor, where: str) -> Tensor:
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(f"{where} is a sparse or quantised tensor; save tensor.to_dense() or tensor.dequantize()")
    return tensor.detach()


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as {file.suffix}, or is cut short: {error}")

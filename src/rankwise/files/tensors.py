"""Safetensors files: write errors are OSErrors, and a file is read once, from one open handle into memory."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .digests import digest
from .reading import read_bytes

SEAL = "sha256"


def write_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; an OSError if it cannot be written.

    Args:
        path: the file, new or to be overwritten; see `replacing`.
        about: text by name, stored with the tensors and with the sha256 of all, which `read_tensors` checks.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses overlapping views of one storage.
    plain = {
        name: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        for name, tensor in plain.items()
    }
    sealed = {"format": "pt"} if about is None else {**about, SEAL: digest([about, plain])}
    try:
        safetensors.torch.save_file(plain, path, metadata=sealed)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the text stored with them, which includes the sha256 (`SEAL`) if any.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a safetensors file, or its content does not match its sha256.
    """
    data = read_bytes(path)
    tensors = tensors_of(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = dict(header.get("__metadata__") or {})
    content = {name: text for name, text in about.items() if name != SEAL}
    if SEAL in about and about[SEAL] != digest([content, tensors]):
        raise ValueError("its content does not match its sha256")
    return tensors, about


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, sorted by name; a ValueError for other bytes."""
    try:
        return dict(sorted(safetensors.torch.load(data).items()))
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype unknown to torch
        raise ValueError(f"it is not a safetensors file: {error}") from error

"""Checkpoints: the file that training resumes from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..files import Stream, read_bytes, replacing, shown, told

VERSION = 2  # the first version that ends with the sha256 of what stands before
_SEAL = b"\nrankwise checkpoint sha256 "


def write_checkpoint(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole: after an OSError, as on a full disk, the one before is still there.

    `run` identifies the training, in plain values; `state` is tensors, numbers, text and containers of them.
    """
    with replacing(path) as new, Stream(new) as stream:
        torch.save({"rankwise": VERSION, "run": dict(run), "state": dict(state)}, stream)  # type: ignore[arg-type]
        stream.write(_SEAL + stream.sha256.encode())


def read_checkpoint(path: Path, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the state from a checkpoint; nothing in the file is executed.

    Raises:
        ValueError: if there is no such file, it is damaged, or it was not written for `run`; the message says what
            differs. None accepts any.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; start without resuming")
    with told(f"checkpoint {path} is damaged", "delete it and start again", RuntimeError, EOFError, UnpicklingError):
        content = torch.load(io.BytesIO(_unsealed(read_bytes(path))), map_location="cpu", weights_only=True)
    fields = {"rankwise": int, "run": dict, "state": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in fields.items()):
        raise ValueError(f"{path} is not a Rankwise checkpoint; delete it and start again")
    if content["rankwise"] != VERSION:
        raise ValueError(f"{path} is not a checkpoint of this version of Rankwise; delete it and start again")
    stored = content["run"]
    if run is not None and stored != dict(run):
        differ = [
            f"{key} {shown(stored.get(key))} there, {shown(run.get(key))} here"
            for key in {**stored, **run}
            if stored.get(key) != run.get(key)
        ]
        raise ValueError(
            f"checkpoint {path} is of another training: {'; '.join(differ)}; resume with the same "
            "settings, or name another file"
        )
    state: dict[str, Any] = content["state"]
    return state


def _unsealed(content: bytes) -> bytes:
    body, seal, sha256 = content.rpartition(_SEAL)
    if not seal:
        raise ValueError("it is cut off, or not a checkpoint of this version of Rankwise")
    if hashlib.sha256(body).hexdigest().encode() != sha256:
        raise ValueError("its content is not what its sha256 says")
    return body

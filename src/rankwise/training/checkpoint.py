"""The file that a training goes on from."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import replacing

VERSION = 1


def write_checkpoint(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint, all of it or nothing: after an error the one before is still there.

    Args:
        path: the file.
        run: what tells this training from others, in plain values.
        state: tensors, numbers, text and containers of them.

    Raises:
        OSError: naming the file, where it cannot be written, as on a full disk.
    """
    with replacing(path) as new:
        try:
            with new.open("wb") as file:
                torch.save({"rankwise": VERSION, "run": dict(run), "state": dict(state)}, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch's way to say that writing failed
            raise OSError(getattr(error.__cause__, "errno", None), str(error)) from error


def read_checkpoint(path: Path, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state in a checkpoint. Nothing in the file is executed.

    Args:
        path: the file.
        run: what the training that reads it is; None to take it from any.

    Raises:
        ValueError: where there is no such file, it is damaged, or of another training; the message says what differs.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; start without resuming")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged ({reason}); delete it and start anew") from error
    if not isinstance(content, dict) or content.get("rankwise") != VERSION:
        raise ValueError(f"{path} is no checkpoint of this version of Rankwise; delete it and start anew")
    stored = content["run"]
    if run is not None and stored != dict(run):
        differ = [
            f"{key} {stored.get(key)!r} there, {run.get(key)!r} here"
            for key in {**stored, **run}
            if stored.get(key) != run.get(key)
        ]
        raise ValueError(
            f"checkpoint {path} is of another training: {'; '.join(differ)}; go on with the same settings, or name "
            "another file"
        )
    state: dict[str, Any] = content["state"]
    return state

"""A training in two stages that can be stopped in either, with one checkpoint file for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .options import Look
from .together import shared

Progress = Callable[[str, Look], None]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How two stages are kept and followed.

    Attributes:
        checkpoint: file to resume from; the first of two stages adds its name to the file's.
        resume: resume from it.
        progress: called with the stage and each look at the held-out samples.
    """

    checkpoint: str | Path | None = None
    resume: bool = False
    progress: Progress | None = None

    def keeping(self, stage: str, run: Mapping[str, Any], device: torch.device, place: str = "only") -> dict[str, Any]:
        """The arguments of `Keeping` for a stage, which is the "first", the "second" or the "only" one."""
        file, resume = None if self.checkpoint is None else Path(self.checkpoint), self.resume
        if file is not None and place == "first":
            file = file.with_name(f"{file.name}.{stage}")
        elif place == "second":  # a run that was stopped before its second stage has no file of it
            resume = resume and file is not None and bool(shared(file.exists(), device))
        progress = None if self.progress is None else partial(self.progress, stage)
        return {"checkpoint": file, "resume": resume, "run": {"stage": stage, **run}, "progress": progress}

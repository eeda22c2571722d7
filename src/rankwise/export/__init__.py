"""Take a network to other runtimes."""

from __future__ import annotations

from .absorb import absorbed
from .executorch import executorch
from .onnx import onnx

__all__ = ["absorbed", "executorch", "onnx"]

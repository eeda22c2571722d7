"""Take a network to other runtimes."""

from __future__ import annotations

from .absorb import absorbed
from .onnx import onnx

__all__ = ["absorbed", "onnx"]

"""Take a network to other runtimes."""

from __future__ import annotations

from .onnx import onnx

__all__ = ["onnx"]

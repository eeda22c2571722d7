"""Take a network to other runtimes."""

from __future__ import annotations

from ..surgery.folding import folded
from .absorb import absorbed
from .executorch import executorch
from .onnx import onnx
from .pt2 import pt2

__all__ = ["absorbed", "executorch", "folded", "onnx", "pt2"]

"""Take a network to other runtimes."""

from __future__ import annotations

from ..surgery.folding import folded
from .absorb import absorbed
from .to_executorch import executorch
from .to_onnx import onnx
from .to_pt2 import pt2

__all__ = ["absorbed", "executorch", "folded", "onnx", "pt2"]

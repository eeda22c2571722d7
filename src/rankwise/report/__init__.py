"""Reports: one page that shows what was done to a network, why, and what it did."""

from __future__ import annotations

from .findings import Findings, Front, Layer, Point
from .page import write_page

__all__ = ["Findings", "Front", "Layer", "Point", "write_page"]

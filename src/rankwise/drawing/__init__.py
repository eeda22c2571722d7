"""Pictures, drawn by matplotlib; it is imported when the first one is drawn."""

from __future__ import annotations

from .bars import Bar, bars_figure
from .style import FONT, PAGE, WHITE, Colours, figure, save_picture, svg

__all__ = ["FONT", "PAGE", "WHITE", "Bar", "Colours", "bars_figure", "figure", "save_picture", "svg"]

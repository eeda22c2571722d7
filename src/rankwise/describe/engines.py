"""What an engine likes, in plain values: the formats that are tried by default, and the step between ranks."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..latency import Engine
from ..latency.grid import grid_of
from ..planning.defaults import formats_for
from .layers import layer_site

WIDTHS = (8, 16, 32, 64, 128, 256, 512)


def suited(engine: Engine) -> list[dict[str, Any]]:
    """A row for each width of 3 x 3 convolutions and of linear layers, measured on this machine the first time.

    Args:
        engine: where networks will run.

    Returns:
        The layer, its width (the smaller side), the step of ranks below one block, the block, and the formats.
    """
    grid = grid_of(engine, nn.Linear(1, 1))
    rows = []
    for kind, shape in (("3 x 3 convolution", (3, 3)), ("linear layer", ())):
        for width in WIDTHS:
            site = layer_site((width, width, *shape))
            step = grid.step(site)
            formats = [name for name in formats_for(engine, site) if shape or name == "svd"]
            rows.append({"layer": kind, "width": width, "step": int(step), "block": step.block, "formats": formats})
    return rows

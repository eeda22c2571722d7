"""Measure the four numbers of a roofline on this device."""

from __future__ import annotations

from statistics import correlation

import torch
from torch import nn

from ..running.exclusive import exclusive
from .engine import Engine
from .layers import Input, randomised, work_of
from .roofline import Device

# Output channels of the layers that tell the tile, and the tiles to choose from.
CHANNELS = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
TILES = (1, 2, 4, 8, 16, 32)
# Small layers in a row, to tell the overhead of each.
LAYERS = 33


@exclusive
def measured_device(engine: Engine) -> Device:
    """Measure what an engine reaches on the device that it runs on.

    Peak: the better of a large 3 x 3 convolution and a large linear layer. Bandwidth: a linear layer on one row, whose
    weights are read once. Overhead: per layer, of small layers in a row. Tile: the multiple of channels that correlates
    best with the times of a convolution.

    `machine_limits` measures the first two for torch in its best round. Plans need what this engine usually reaches.

    Args:
        engine: such as `get_engine("onnxruntime", threads=1)`.

    Example:
        >>> from rankwise.latency import get_engine
        >>> measured_device(get_engine("torch")).save("cpu.yaml")  # doctest: +SKIP
    """
    layers = _layers()
    works = {
        name: work_of(randomised(layer), Input(shape, torch.float32)) for name, (layer, shape, _) in layers.items()
    }
    times = {name: time.median for name, time in engine.times(works, around=32 << 20).items()}
    seconds = [times[f"{count} channels"] for count in CHANNELS]

    def misfit(tile: int) -> float:
        return 1 - correlation([float(-(-count // tile) * tile) for count in CHANNELS], seconds)

    return Device(
        name=f"{engine.device(layers['row'][0])}, {engine}",
        peak=max(layers[name][2] / times[name] for name in ("convolution", "linear")),
        bandwidth=layers["row"][2] / times["row"],
        tile=min(TILES, key=misfit),
        overhead=max(0.0, (times["small in a row"] - times["small"]) / (LAYERS - 1)),
    )


def _layers() -> dict[str, tuple[nn.Module, tuple[int, ...], float]]:
    """What is measured: a layer, the shape of its input, and its MACs or bytes."""
    with torch.device("meta"):
        layers = {
            "convolution": (nn.Conv2d(256, 256, 3, padding=1), (1, 256, 28, 28), 28**2 * 9 * 256**2),
            "linear": (nn.Linear(1024, 1024), (256, 1024), 256 * 1024**2),
            "row": (nn.Linear(4096, 4096), (1, 4096), 4 * 4096**2),
            "small": (nn.Linear(16, 16), (1, 16), 0.0),
            "small in a row": (nn.Sequential(*[nn.Linear(16, 16) for _ in range(LAYERS)]), (1, 16), 0.0),
        }
        for channels in CHANNELS:
            layers[f"{channels} channels"] = nn.Conv2d(64, channels, 3, padding=1), (1, 64, 28, 28), 0.0
        return layers

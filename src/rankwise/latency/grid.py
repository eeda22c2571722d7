"""How many channels an engine computes at once: ranks between two multiples take as long as the next one.

Letters: N channels around a chain, R its rank.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean

import torch
from torch import nn

from ..formats.ladders import Step
from ..network.site import Site
from ..running.exclusive import exclusive
from ..running.state import stored_bytes
from ..timing.clock import Latency
from .cache import Cache
from .engine import Engine, Work
from .layers import Input, device_of, randomised, work_of

logger = logging.getLogger("rankwise")

# Blocks to choose from (vector units take four numbers at least), and ranks that tell them apart.
BLOCKS = (4, 8, 16, 32)
RANKS = (20, 24, 28, 32, 36, 40, 48, 64)
# A block is right if ranks below its multiples take at least this share of the time of the multiple, on average.
FULL = 0.93
# Channels around the chains that are measured, and the size of their pictures, or the rows of a linear layer.
CHANNELS, SIZE, ROWS = 64, 16, 64
ROUNDS, WARMUP, NARROW = 20, 2, 0.05
# In layers of this width ranks are multiples of 8 at least: finer ones make long curves and change nothing.
WIDE, WIDE_STEP = 128, 8
# Layers as wide as this many blocks have enough ranks that fill them. Narrower ones have at least so many steps; linear
# layers more, as their time grows more smoothly and they have half as many ranks that save anything.
BLOCKS_WIDE, FEWEST_STEPS, FEWEST_LINEAR_STEPS = 8, 4, 16
# Larger networks take minutes to export, so they are timed in torch unless an engine is named.
EXPORTED = 512 << 20


def at_hand(model: nn.Module) -> str:
    """The engine that a network will probably run in: onnxruntime for networks on the CPU if it is installed.

    Example:
        >>> at_hand(nn.Linear(2, 2, device="meta"))
        'torch'
    """
    complete = all(find_spec(name) is not None for name in ("onnxruntime", "onnx", "onnxscript"))
    small = device_of(model).type == "cpu" and stored_bytes(model) <= EXPORTED
    return "onnxruntime" if complete and small else "torch"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Channels that an engine computes at once, 1 if its time grows with every channel.

    Example:
        >>> site = Site(name="conv", kind="conv2d", weight_shape=(32, 32, 3, 3))
        >>> step = Grid(convolution=16, linear=4).step(site)
        >>> int(step), step.block
        (8, 8)
    """

    convolution: int = 1
    linear: int = 1

    def step(self, site: Site) -> Step:
        """The step between ranks of a site: the block in wide layers, finer in narrow ones, and powers of two below."""
        narrow = min(site.out_features // site.groups, site.weight_shape[1])
        block = self.convolution if site.is_convolution else self.linear
        if narrow >= WIDE:
            block = max(block, WIDE_STEP)
        fewest = FEWEST_STEPS if site.is_convolution else FEWEST_LINEAR_STEPS
        fine = max(1, min(narrow // fewest, block // 2))
        fine = 1 << (fine.bit_length() - 1)
        return Step(fine, block if narrow >= BLOCKS_WIDE * block else fine)


def rank_step(site: Site) -> int:
    """The step between ranks of a site for an engine that is not known: `WIDE_STEP` in wide layers, else 1."""
    return WIDE_STEP if min(site.out_features // site.groups, site.weight_shape[1]) >= WIDE else 1


@exclusive
def grid_of(engine: Engine, model: nn.Module) -> Grid:
    """The grid of an engine on the device of a network; its times are measured once and stored on disk.

    Raises:
        ValueError: if the engine cannot run a convolution or a linear layer.
    """
    device = device_of(model)
    cache = Cache(engine, model)
    chains = {**_convolutions(), **_linears()}
    if missing := {name: chain for name, chain in chains.items() if name not in cache}:
        works = {name: _work(chain, device) for name, chain in missing.items()}
        cache.add(engine.times(works, rounds=ROUNDS, warmup=WARMUP, narrow=NARROW))
    kinds = ("convolution", "linear")
    found = {kind: block_of({rank: cache[time_name(kind, rank)] for rank in RANKS}) for kind in kinds}
    logger.debug("%s computes %s channels at once", engine, found)
    return Grid(**found)


def block_of(times: Mapping[int, Latency]) -> int:
    """The largest block below whose multiples nothing is gained.

    Args:
        times: of a chain at every rank of `RANKS`.
    """

    def saved(block: int) -> float:
        pairs = [(rank, -(-rank // block) * block) for rank in RANKS if rank % block]
        return fmean(times[rank].median / times[up].median for rank, up in pairs) if pairs else 1.0

    return max(block for block in BLOCKS if saved(block) >= FULL)


def time_name(kind: str, rank: int) -> str:
    """The name that the time of a chain is stored under."""
    return f"grid of a {kind}: rank {rank}"


def _convolutions() -> dict[str, tuple[nn.Module, Input]]:
    given = Input((1, CHANNELS, SIZE, SIZE), torch.float32)

    def chain(rank: int) -> nn.Module:
        first, last = nn.Conv2d(CHANNELS, rank, 1, bias=False), nn.Conv2d(rank, CHANNELS, 1, bias=False)
        return nn.Sequential(first, nn.Conv2d(rank, rank, 3, padding=1, bias=False), last)

    with torch.device("meta"):
        return {time_name("convolution", rank): (chain(rank), given) for rank in RANKS}


def _linears() -> dict[str, tuple[nn.Module, Input]]:
    given, wide = Input((ROWS, 4 * CHANNELS), torch.float32), 4 * CHANNELS

    def chain(rank: int) -> nn.Module:
        return nn.Sequential(nn.Linear(wide, rank, bias=False), nn.Linear(rank, wide))

    with torch.device("meta"):
        return {time_name("linear", rank): (chain(rank), given) for rank in RANKS}


def _work(chain: tuple[nn.Module, Input], device: torch.device) -> Work:
    layer, given = chain
    return work_of(randomised(layer).to(device), given)

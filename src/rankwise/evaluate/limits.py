"""Limits of a machine: multiply-accumulates per second, and bytes per second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import nn

from ..running.verbs import verb
from ..timing.clock import in_turns, synchronised, torch_threads

# Large enough that starting a kernel takes no time beside it, small enough to run undisturbed on a busy machine.
MATRIX = 512
# A convolution: samples, channels in and out, height and width of the picture, kernel.
PICTURE = (4, 256, 256, 14, 3)
# Numbers to copy at once, and how many such windows take turns: together they fit in no cache.
WINDOW, WINDOWS = 4 * 2**20, 16
ROUNDS = 2 * WINDOWS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Measured limits of a machine: multiply-accumulates in large products, bytes read or written outside caches."""

    macs_per_second: float
    bytes_per_second: float

    def seconds(self, macs: int, moved: int) -> float:
        """The least time for these multiply-accumulates and bytes: the slower of the two decides.

        Example:
            >>> Limits(macs_per_second=100.0, bytes_per_second=10.0).seconds(macs=200, moved=50)
            5.0
        """
        return max(macs / self.macs_per_second, moved / self.bytes_per_second)


@verb
def machine_limits(
    threads: int = 1, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Limits:
    """Measure the limits of this machine.

    MACs per second come from a 512 x 512 matrix product or a 3 x 3 convolution of 256 channels, whichever is faster:
    torch gives them to two libraries, which on some processors are far apart. Bytes per second come from a copy, read
    and written. Each is the best of 32 rounds, because disturbances can only make a machine slower.

    Args:
        threads: of the CPU; torch's own setting is restored.
        device: what to measure.
        dtype: of the numbers.

    Raises:
        ValueError: if `threads` is below 1.

    Example:
        >>> limits = machine_limits()  # doctest: +SKIP
        >>> f"{limits.macs_per_second:.3g} MAC/s, {limits.bytes_per_second:.3g} B/s"  # doctest: +SKIP
        '5.9e+10 MAC/s, 2.1e+10 B/s'
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    device = torch.device(device)
    with torch.no_grad(), torch_threads(threads):
        runs, macs, moved = _runs(device, dtype)
        best = {name: min(seconds) for name, seconds in in_turns(runs, ROUNDS, 2).items()}
    return Limits(
        macs_per_second=max(count / best[name] for name, count in macs.items()), bytes_per_second=moved / best["copy"]
    )


def _runs(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Callable[[], object]], dict[str, int], int]:
    """The runs to time, their multiply-accumulates by name, and the bytes of the copy."""
    samples, inputs, outputs, size, kernel = PICTURE
    matrix = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
    pictures = torch.randn(samples, inputs, size, size, device=device, dtype=dtype)
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, device=device, dtype=dtype)
    given = torch.zeros(WINDOWS, WINDOW, device=device, dtype=dtype)
    taken = given.clone()
    turns = cycle(zip(taken, given, strict=True))

    def copy() -> None:
        to, source = next(turns)
        to.copy_(source)

    runs: dict[str, Callable[[], object]] = {
        "product": lambda: matrix @ matrix,
        "convolution": lambda: layer(pictures),
        "copy": copy,
    }
    macs = {"product": MATRIX**3, "convolution": samples * size**2 * outputs * inputs * kernel**2}
    return {name: synchronised(run, device) for name, run in runs.items()}, macs, 2 * given[0].nbytes

"""Which rows of calibration data are used."""

from __future__ import annotations

from dataclasses import dataclass

from ..running.padding import Mask


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which rows of the data are used.

    Attributes:
        positions: output positions of each sample, as for `collect`.
        seed: of the positions.
        mask: which positions are real, as for `collect`.
    """

    positions: int | str = "auto"
    seed: int = 0
    mask: Mask | None = None

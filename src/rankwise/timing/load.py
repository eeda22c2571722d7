"""Whether the machine has more load than cores: times are then unreliable."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

logger = logging.getLogger("rankwise")

# The running processes of one moment say little: take the median of this many moments, this many seconds apart.
MOMENTS, APART = 5, 0.01


def load() -> float:
    """Processes that want a core: the average of a minute, or of this moment if that is more; 0 if not known.

    The average lags behind, and the moment misses processes that pause.
    """
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(average, _running())


def cores() -> int:
    """Cores of the machine."""
    return os.cpu_count() or 1


class Watch:
    """Warns once if the machine has more load than cores before or after a measurement."""

    def __init__(self) -> None:
        self._warned = False
        self.look()

    def look(self) -> None:
        """Look at the load now."""
        if self._warned or (now := load()) <= (there := cores()):
            return
        logger.warning(
            "the machine is busy (load %.1f on %d core%s): times are unreliable", now, there, "s" * (there > 1)
        )
        self._warned = True


@contextmanager
def watched() -> Iterator[None]:
    """Warn if the machine is busy before or after what is measured inside."""
    watch = Watch()
    yield
    watch.look()


def _running() -> float:
    """Processes that run or wait for a core, including this one; 0 if the system does not tell."""
    file = Path("/proc/loadavg")
    counts = []
    for _ in range(MOMENTS):
        try:
            counts.append(int(file.read_text(encoding="ascii").split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return 0.0
        time.sleep(APART)
    return float(median(counts))

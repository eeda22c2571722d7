"""Whether a machine has more to do than cores: then times belong to its other work as well."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

logger = logging.getLogger("rankwise")

# The running processes of one moment say little; the median of so many moments, so many seconds apart, is taken.
MOMENTS, APART = 5, 0.01


def load() -> float:
    """Processes that want a core: the average of a minute or those of this moment, whichever are more; 0 if not known.

    The average lags behind, and the moment misses what pauses.
    """
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(average, _running())


def cores() -> int:
    """Cores of the machine."""
    return os.cpu_count() or 1


class Watch:
    """Warns once of a machine that has more load than cores when it looks, before or after a measurement."""

    def __init__(self) -> None:
        self._warned = False
        self.look()

    def look(self) -> None:
        """Look at the load of this moment."""
        if self._warned or (now := load()) <= (there := cores()):
            return
        logger.warning(
            "the machine is busy (load %.1f on %d core%s): times are unreliable", now, there, "s" * (there > 1)
        )
        self._warned = True


@contextmanager
def watched() -> Iterator[None]:
    """Warn of a machine that was busy before or after the times that are measured inside."""
    watch = Watch()
    yield
    watch.look()


def _running() -> float:
    """Processes that run or wait for a core, where the system says so; this one is among them."""
    file = Path("/proc/loadavg")
    counts = []
    for _ in range(MOMENTS):
        try:
            counts.append(int(file.read_text(encoding="ascii").split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return 0.0
        time.sleep(APART)
    return float(median(counts))

"""`--stats FILE`: statistics are read if the file exists, else collected and written there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..statistics import Statistics

logger = logging.getLogger("rankwise")


@dataclass(kw_only=True)
class StatisticsFile:
    """Where statistics are stored.

    Attributes:
        path: None without a file.
        stored: whether the file was there already: its statistics may be of other data.
        fingerprint: the network's; the statistics must have the same.
        model: MODEL of the command line.
        was_read: whether the stored statistics were used.
    """

    path: Path | None
    stored: bool
    fingerprint: str
    model: str
    was_read: bool = field(default=False, init=False)

    @classmethod
    def of(cls, path: Path | None, fingerprint: str, model: str, *, collected: bool = False) -> StatisticsFile:
        """The file at that path; `collected` says that this run wrote it before it was stopped."""
        stored = path is not None and path.exists() and not collected
        return cls(path=path, stored=stored, fingerprint=fingerprint, model=model)

    def read(self) -> Statistics:
        """The statistics in the file; raises a ValueError if there is none, or they are of another network."""
        from ..statistics import Statistics

        if self.path is None or not self.stored:
            raise ValueError(
                "every metric but weight needs data: name DATA or an existing --stats FILE, or choose --metric weight"
            )
        logger.info("statistics: read from %s", self.path)
        stats = Statistics.load(self.path)
        if stats.sites.fingerprint != self.fingerprint:
            raise ValueError(f"--stats {self.path} is of another network than {self.model}; name another file")
        self.was_read = True
        return stats

    def write(self, stats: Statistics) -> None:
        """Store collected statistics if a file is named; a resumed run may have written it already."""
        if self.path is not None and not self.path.exists():
            stats.save(self.path)
            logger.info("statistics: written to %s", self.path)

"""`--stats FILE`: statistics that are read where the file exists, and else collected and written there."""

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
        path: the file, None for none.
        stored: whether it was there already, so that it may be of other data.
        fingerprint: of the network that the statistics have to be of.
        model: MODEL of the command line.
        was_read: whether anything was made of what it holds.
    """

    path: Path | None
    stored: bool
    fingerprint: str
    model: str
    was_read: bool = field(default=False, init=False)

    @classmethod
    def of(cls, path: Path | None, fingerprint: str, model: str, *, collected: bool = False) -> StatisticsFile:
        """The file of that path; `collected` says that it was written by this run, before it was stopped."""
        stored = path is not None and path.exists() and not collected
        return cls(path=path, stored=stored, fingerprint=fingerprint, model=model)

    def read(self) -> Statistics:
        """The statistics in the file.

        Raises:
            ValueError: where there is no file, or it is of another network.
        """
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
        """Store statistics that were collected, where a file is named; a run that was resumed has written it."""
        if self.path is not None and not self.path.exists():
            stats.save(self.path)
            logger.info("statistics: written to %s", self.path)

"""What was tried, and how that ended."""

from __future__ import annotations

from collections.abc import Callable

Tally = Callable[[str, str, int], None]
COLUMNS = ("tried", "as before", "replaced", "refused", "lost", "half", "left over", "wrong")

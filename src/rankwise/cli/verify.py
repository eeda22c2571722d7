"""`rankwise verify`: is an artifact, or another file of Rankwise, whole?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from .command import command
from .options.base import Telling, argument

What = Annotated[Path, argument("PATH", "An artifact, statistics, a plan, or a checkpoint.")]


@command
def verify(path: What, tell: Telling) -> None:
    """Check that an artifact, statistics, a plan or a checkpoint is complete and undamaged.

    Example: [bold]rankwise verify out/[/bold]

    Checks checksums, every field, and that each tensor can be decoded. The network is not needed: loading compares it.
    Exit code 0 if everything is intact, 2 if something is missing or damaged.
    """
    with tell.output() as out:
        from ..verification import verify as verified

        found = verified(path)
        out.say(f"{path} is whole: {found.kind}")
        for fact in found.facts:
            out.say(f"  {fact}")
        for note in found.notes:
            out.note(note)
        out.result("verify", {"path": str(path), **asdict(found)})

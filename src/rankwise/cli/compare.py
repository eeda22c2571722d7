"""`rankwise compare`: two artifacts side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .command import command
from .options.base import Telling, argument, plain

if TYPE_CHECKING:
    from ..report import Findings

One = Annotated[Path, argument("ARTIFACT", "A compressed network.")]
Other = Annotated[Path, argument("OTHER", "Another one, of the same dense network or not.")]
PageOut = Annotated[Path | None, plain("-o --out FILE", "Also write a page (.html); needs matplotlib.", shown=False)]


@command
def compare(one: One, other: Other, tell: Telling, page: PageOut = None) -> None:
    """Lay two compressed networks side by side: sizes, accuracy, speed, and every layer.

    Example: [bold]rankwise compare out/ out2/ -o compared.html[/bold]

    Everything comes from the artifacts; no network is run. Times of two runs do not compare, so each is shown as the
    speed over its own dense network.
    """
    with tell.output(writes=[page]) as out:
        out.run = None
        from ..report.comparison import figures_beside, layers_beside, write_comparison
        from .tables import beside_tables

        a, b = _found(one), _found(other)
        if a.name == b.name:
            a, b = replace(a, name=str(one)), replace(b, name=str(other))
        figures, layers = figures_beside(a, b), layers_beside(a, b)
        for table in beside_tables((a.name, b.name), figures, layers):
            out.show(table)
            out.say("")
        if page is not None:
            write_comparison(a, b, page)
            out.say(f"page: {page}")
        out.result("compare", {"artifacts": [one, other], "figures": [a.figures, b.figures], "layers": layers})


def _found(artifact: Path) -> Findings:
    """What an artifact holds."""
    from ..artifact import read, stored_bytes
    from ..report import Findings

    return Findings.of_artifact(artifact.resolve().name, read(artifact), stored_bytes(artifact))

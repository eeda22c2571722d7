"""How options are written, and how a command tells what it has done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..output import Output

DATA, BUDGET, OUTPUT, TRAINING = "Data", "Budget and constraints", "Output", "Training"  # panels of the help


def option(*flags: str, help: str, of: str | None = None, panel: str | None = None, default: bool = True) -> Any:
    """An option: `of` is what its value is called, `default` whether help shows the default."""
    return typer.Option(*flags, metavar=of, rich_help_panel=panel, show_default=default, help=help)


def argument(metavar: str, help: str) -> Any:
    """A positional argument."""
    return typer.Argument(metavar=metavar, show_default=False, help=help)


Out = Annotated[Path, option("-o", "--out", of="DIR", default=False, help="Folder for the artifact and plan.yaml.")]


@dataclass(frozen=True, kw_only=True)
class Telling:
    """How a command tells what it has done."""

    json: Annotated[
        str | None,
        option("--json", of="FILE", panel=OUTPUT, help="Also write all figures as JSON; - for standard output."),
    ] = None
    debug: Annotated[bool, option("--debug", panel=OUTPUT, help="Show the traceback of an error.")] = False

    def output(self, writes: Iterable[Path | None] = ()) -> Output:
        """The output of the command, as a context; `writes` names its files and folders."""
        return Output(self.json, debug=self.debug, writes=writes)


@dataclass(frozen=True, kw_only=True)
class Run(Telling):
    """The same, and the seed."""

    seed: Annotated[int, option("--seed", of="N", panel=OUTPUT, help="Random seed.")] = 0

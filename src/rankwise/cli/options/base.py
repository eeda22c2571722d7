"""How options are declared, and the options of a command's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..output import Output, Saying


def option(panel: str | None, spec: str, help: str, shown: bool = True) -> Any:
    """An option in a panel of the help; `spec` holds its names and what its value is called: "-o --out FILE"."""
    words = spec.split()
    flags = [word for word in words if word.startswith("-")]
    of = " ".join(words[len(flags) :]) or None
    return typer.Option(*flags, metavar=of, rich_help_panel=panel, show_default=shown, help=help)


plain, data, budget, output, training = (
    partial(option, panel) for panel in (None, "Data", "Budget and constraints", "Output", "Training")
)


def argument(metavar: str, help: str) -> Any:
    """A positional argument."""
    return typer.Argument(metavar=metavar, show_default=False, help=help)


Out = Annotated[Path, plain("-o --out DIR", "Folder for the artifact and plan.yaml.", shown=False)]


@dataclass(frozen=True, kw_only=True)
class Telling:
    """How a command reports."""

    json: Annotated[str | None, output("--json FILE", "Also write all figures as JSON; - for standard output.")] = None
    quiet: Annotated[bool, output("-q --quiet", "Print only notes and errors.")] = False
    verbose: Annotated[bool, output("-v --verbose", "Also print what each step took.")] = False
    log: Annotated[Path | None, output("--log FILE", "Append all of it to a file, with times and tracebacks.")] = None
    config: Annotated[
        Path | None,
        output(
            "--config FILE",
            "Options and arguments from a file, such as the run.yaml that every run writes beside its result; those "
            "on the command line win.",
        ),
    ] = None
    debug: Annotated[bool, output("--debug", "Show the traceback of an error.")] = False

    def output(self, writes: Iterable[Path | None] = ()) -> Output:
        """The command's output, as a context; `writes` are the files and folders that it writes."""
        how = Saying(debug=self.debug, quiet=self.quiet, verbose=self.verbose, log=self.log)
        return Output(self.json, how=how, writes=writes)


@dataclass(frozen=True, kw_only=True)
class Run(Telling):
    """How a command reports, and its random seed."""

    seed: Annotated[int, output("--seed N", "Random seed.")] = 0


@dataclass(frozen=True, kw_only=True)
class LongRun(Run):
    """A run that may take long, and so can be asked what it will take."""

    dry_run: Annotated[
        bool,
        output(
            "--dry-run",
            "Only say what it will take: layers, memory, disk, and time by a short measured probe. Nothing is written.",
        ),
    ] = False

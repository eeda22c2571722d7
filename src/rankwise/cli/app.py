"""The command line.

`rankwise scan | doctor | inspect | collect | compress | plan | pareto | apply | heal | train | unified | evaluate |
report | compare | export | verify | formats | roofline | demo`.

A command module imports torch inside its function, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .apply import apply
from .collect import collect
from .compare import compare
from .compress import compress
from .config import Commands, Configured
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .formats import formats
from .heal import heal
from .inspect import inspect
from .pareto import pareto
from .plan import plan
from .report import report
from .roofline import roofline
from .scan import scan
from .train import train
from .unified import unified
from .verify import verify
from .version import version

__all__ = ["app", "main"]

app = typer.Typer(
    name="rankwise",
    help="Make a trained PyTorch network smaller and faster by low-rank factorisation.\n\n"
    "MODEL is [bold]torchvision:resnet18[/bold] or [bold]nets.py:build[/bold] (a function that returns the network), "
    "with [bold]--weights FILE[/bold]. No labels and no training are needed.\n\n"
    "What can I save? [bold]rankwise scan[/bold] nets.py:build pictures/ --size 32 --test test.npz\n\n"
    "Is everything here? [bold]rankwise doctor[/bold]\n\n"
    "What will it take? [bold]--dry-run[/bold] on any long command\n\n"
    "[bold]rankwise compress[/bold] nets.py:build pictures/ --size 32 --keep macs=0.5 -o out/\n\n"
    "[bold]rankwise report[/bold] out/   one page to show\n\n"
    "[bold]rankwise export[/bold] nets.py:build --artifact out/ -o model.onnx\n\n"
    "Exit codes: 0 fine, 2 something to correct in the command or its files, 130 and 143 stopped by Ctrl-C or "
    "SIGTERM, 1 anything else.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    cls=Commands,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rankwise {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


def _paragraphs(docstring: str | None) -> str:
    """The docstring with one line for each paragraph: the terminal breaks lines, not the source."""
    return "\n\n".join(" ".join(text.split()) for text in (docstring or "").split("\n\n"))


for command in (
    *(scan, doctor, inspect, collect, compress, plan, pareto, apply, heal, train, unified, evaluate, report, compare),
    *(export, verify, formats, roofline, demo),
):
    app.command(cls=Configured, help=_paragraphs(command.__doc__))(command)


def main() -> None:
    """Run the command line; the entry point `rankwise`."""
    app()

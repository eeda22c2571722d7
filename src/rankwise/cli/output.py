"""The output of a command: tables for people, one JSON document for programs, one clear line for an error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, RenderableType

from .stopping import CLOSED_PIPE, Kept, close_quietly, exit_code, stoppable

# A pipe or a log file has no width; tables of layer names need more than the usual 80 columns.
WIDTH_WITHOUT_TERMINAL = 150
LONGEST = 4000  # characters in an error: the names of a hundred layers


class _Relay(logging.Handler):
    """Shows what the library logs: how much memory it will take, what it has to do the slow way."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        (self.output.note if record.levelno >= logging.WARNING else self.output.say)(record.getMessage())


class Output:
    """The output of one command, as a context: an error inside becomes one line and an exit code.

    Exit codes: 0 fine; 2 the user's input cannot be used (`ValueError`, a missing file or package); 130 for Ctrl-C and
    143 for SIGTERM, after a line that says what was kept; 141 without a message if the reader of standard output has
    gone; 1 anything else.

    With `-` as `json_file` the JSON document goes to standard output, and tables go to standard error. `writes` are
    the files and folders that the command writes.
    """

    def __init__(
        self, json_file: str | None = None, *, debug: bool = False, writes: Iterable[Path | None] = ()
    ) -> None:
        self.json_file = json_file
        self.debug = debug
        self.errors = _console(stderr=True)
        self.console = _console(stderr=json_file == "-")
        self._document: dict[str, Any] | None = None
        self._log = _Relay(self)
        self._kept = Kept(writes)
        self._signals = ExitStack()

    def __enter__(self) -> Output:
        logger = logging.getLogger("rankwise")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self._signals.enter_context(stoppable())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logger = logging.getLogger("rankwise")
        logger.removeHandler(self._log)
        logger.setLevel(logging.NOTSET)
        with self._signals:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            with suppress(OSError):  # the terminal may be gone
                self.errors.print(self._kept.told(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(exit_code(error)) from error
        if isinstance(error, BrokenPipeError):
            self._hang_up(error)
        # typer.Exit is a RuntimeError, but not a failure.
        if isinstance(error, Exception) and not isinstance(error, typer.Exit):
            self._fail(error)
        if error is None and self._document is not None:
            try:
                self._write()
            except OSError as problem:
                self._end(problem)
        if error is None:
            try:
                sys.stdout.flush()
            except BrokenPipeError as problem:
                self._hang_up(problem)

    def if_stopped(self, told: Callable[[], str | None]) -> None:
        """Set the message for a command that is stopped before it has written its files; None for the usual one."""
        self._kept.further = told

    def say(self, text: str) -> None:
        """Print a line for people, without markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that the user should not miss, to standard error."""
        self.errors.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        self.console.print(table)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what is going on while it lasts; nothing without a terminal."""
        if not self.errors.is_terminal:
            yield
            return
        with self.errors.status(text):
            yield

    def track(self, batches: Iterable[Any], text: str) -> Iterator[Any]:
        """Iterate over `batches` with a progress bar: what the library's functions take as `progress`."""
        from rich.progress import track

        total = len(batches) if isinstance(batches, Sized) else None
        yield from track(
            batches, text, total=total, console=self.errors, transient=True, disable=not self.errors.is_terminal
        )

    @contextmanager
    def stages(self, text: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show a progress bar of `total` stages; call what it yields with the name of each stage as it begins."""
        from rich.progress import Progress

        with Progress(console=self.errors, transient=True, disable=not self.errors.is_terminal) as progress:
            # A stage that has begun is not done: the bar counts from one before the first.
            task = progress.add_task(text, total=total, completed=-1)
            yield lambda name: progress.update(task, advance=1, description=f"{text} {name}")

    def result(self, command: str, document: Mapping[str, Any]) -> None:
        """Set the JSON document, which is written if the command ends well."""
        from .version import version

        self._document = {"command": command, "rankwise": version(), **document}

    def write_report(self, file: Path) -> None:
        """Write the JSON document to a file, whatever `--json` says."""
        from ..files import replacing

        with replacing(file) as new:
            new.write_text(self._text(), encoding="utf-8")

    def _write(self) -> None:
        if self.json_file == "-":
            sys.stdout.write(self._text())
        elif self.json_file is not None:
            self.write_report(Path(self.json_file))

    def _text(self) -> str:
        from ..files.json_values import json_value

        return json.dumps(json_value(self._document), indent=2, allow_nan=False) + "\n"

    def _hang_up(self, error: BrokenPipeError) -> None:
        close_quietly()
        raise typer.Exit(CLOSED_PIPE) from error

    def _fail(self, error: Exception) -> None:
        if self.debug:
            from rich.traceback import Traceback

            self.errors.print(Traceback.from_exception(type(error), error, error.__traceback__))
        from ..files import cut

        expected = isinstance(error, (ValueError, OSError, ImportError))
        text = cut(str(error).strip(), LONGEST) or type(error).__name__
        if not expected:
            text = f"unexpected {type(error).__name__}: {text}"
        if not expected and not self.debug:
            text += "\n(--debug shows where it came from)"
        self.errors.print("error:", style="bold red", end=" ")
        self.errors.print(text, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if expected else 1) from error


class _Console(Console):
    """A console that leaves a closed pipe to `Output`."""

    def on_broken_pipe(self) -> None:
        """Called while the error is handled."""
        self.quiet = True
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr)
    return console if console.is_terminal else _Console(stderr=stderr, width=WIDTH_WITHOUT_TERMINAL)

"""The output of a command: tables for people, one JSON document for programs, one clear line for an error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, RenderableType

from .config import RUNNING
from .log import Log
from .progress import Progressing, Task, duration
from .stopping import CLOSED_PIPE, Kept, close_quietly, exit_code, stoppable

# A pipe or a log file has no width; tables of layer names need more than the usual 80 columns.
WIDTH_WITHOUT_TERMINAL = 150
LONGEST = 4000  # characters in an error: the names of a hundred layers


class _Relay(logging.Handler):
    """Shows what the library logs: how much memory it will take, what it has to do the slow way."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.DEBUG if output.how.verbose else logging.INFO)
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        (self.output.note if record.levelno >= logging.WARNING else self.output.say)(record.getMessage())


@dataclass(frozen=True, kw_only=True)
class Saying:
    """How much a command says, and the file that keeps all of it."""

    debug: bool = False
    quiet: bool = False
    verbose: bool = False
    log: Path | None = None

    def check(self) -> None:
        """Refuse quiet together with verbose."""
        if self.quiet and self.verbose:
            raise ValueError("--quiet and --verbose contradict each other; keep one of them")


class Output:
    """The output of one command, as a context: an error inside becomes one line and an exit code.

    Exit codes: 0 fine; 2 the user's input cannot be used (`ValueError`, a missing file or package); 130 for Ctrl-C and
    143 for SIGTERM, after a line that says what was kept; 141 without a message if the reader of standard output has
    gone; 1 anything else.

    With `-` as `json_file` the JSON document goes to standard output, and tables go to standard error. `writes` are
    the files and folders that the command writes; beside the first, its result, `run.yaml` is written, which repeats
    the run.
    """

    def __init__(
        self, json_file: str | None = None, *, how: Saying | None = None, writes: Iterable[Path | None] = ()
    ) -> None:
        self.json_file = json_file
        self.how = how or Saying()
        self.errors = _console(stderr=True)
        self.console = _console(stderr=json_file == "-")
        self.notes: list[str] = []
        self.run = RUNNING.get()
        writes = list(writes)
        self._result = writes[0] if writes else None
        self._document: dict[str, Any] | None = None
        self._relay = _Relay(self)
        self._log = Log(self.how.log)
        self._progress = Progressing(None if self.how.quiet else self.errors, self._done)
        self._kept = Kept(writes)
        self._signals = ExitStack()

    def __enter__(self) -> Output:
        try:
            self.how.check()
            self._log.open("" if self.run is None else self.run.line)
        except (ValueError, OSError) as error:
            self._fail(error)
        logger = logging.getLogger("rankwise")
        logger.setLevel(self._relay.level)
        logger.addHandler(self._relay)
        self._signals.enter_context(stoppable())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logger = logging.getLogger("rankwise")
        logger.removeHandler(self._relay)
        logger.setLevel(logging.NOTSET)
        RUNNING.set(None)
        with self._signals, self._log:
            self._write_run()
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            with suppress(OSError):  # the terminal may be gone
                self._log.write(self._kept.told(error))
                self.errors.print(self._kept.told(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(exit_code(error)) from error
        if isinstance(error, BrokenPipeError):
            self._hang_up(error)
        # typer.Exit is a RuntimeError, but not a failure.
        if isinstance(error, Exception) and not isinstance(error, typer.Exit):
            self._fail(error)
        if error is None:
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
        self._log.write(text)
        if not self.how.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that the user should not miss, to standard error."""
        self.notes.append(text)
        self._log.write(f"note: {text}")
        self.errors.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        self._log.show(table)
        if not self.how.quiet:
            self.console.print(table)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what is going on while it lasts."""
        with self._progress.task(text):
            yield

    def track(self, batches: Iterable[Any], text: str) -> Iterator[Any]:
        """Iterate over `batches` with their progress: what the library's functions take as `progress`."""
        with self._progress.task(text, len(batches) if isinstance(batches, Sized) else None) as update:
            for index, batch in enumerate(batches):
                yield batch
                update(index + 1, text)

    @contextmanager
    def stages(self, text: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show the progress of `total` stages; call what it yields with the name of each stage as it begins."""
        begun = 0
        with self._progress.task(text, total) as update:

            def begin(name: str) -> None:
                nonlocal begun
                update(begun, f"{text} {name}")  # a stage that has begun is not done
                begun += 1

            yield begin

    def _done(self, task: Task) -> None:
        text = f"{task.text}: {duration(task.seconds)}"
        self._log.write(text)
        if self.how.verbose:
            self.errors.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def result(self, command: str, document: Mapping[str, Any]) -> None:
        """Set the JSON document, which is written if the command ends well."""
        from .version import version

        self._document = {"command": command, "rankwise": version(), **document}

    def write_report(self, file: Path) -> None:
        """Write the JSON document to a file, whatever `--json` says."""
        from ..files import replacing

        with replacing(file) as new:
            new.write_text(self._text(), encoding="utf-8")

    def _write_run(self) -> None:
        """Write the run beside its result, if that was written, whatever happened afterwards."""
        if self.run is None or self._result is None or not self._kept.changed(self._result):
            return
        try:
            self.run.write(self._result)
        except OSError as error:
            self.note(f"the file that repeats this run was not written: {error}")

    def _write(self) -> None:
        if self._document is None:
            return
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
        self._log.error(error)
        if self.how.debug:
            from rich.traceback import Traceback

            self.errors.print(Traceback.from_exception(type(error), error, error.__traceback__))
        from ..files import cut

        expected = isinstance(error, (ValueError, OSError, ImportError))
        text = cut(str(error).strip(), LONGEST) or type(error).__name__
        if not expected:
            text = f"unexpected {type(error).__name__}: {text}"
        if not expected and not self.how.debug:
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

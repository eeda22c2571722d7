"""A file that keeps everything a command says, with times."""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType

WIDTH = 150


class Log(AbstractContextManager["Log"]):
    """A log file, or nothing if there is no path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None

    def open(self, begin: str) -> None:
        """Open the file to append, with a first line.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
            self.write(begin)

    def write(self, text: str) -> None:
        """Write a line with the time."""
        if self._file is not None and text:
            self._file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {text.strip()}\n")
            self._file.flush()

    def show(self, table: RenderableType) -> None:
        """Write a table."""
        if self._file is not None:
            Console(file=self._file, width=WIDTH).print(table)
            self._file.flush()

    def error(self, error: BaseException) -> None:
        """Write an error with its traceback."""
        self.write("error: " + "".join(traceback.format_exception(error)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

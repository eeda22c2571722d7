"""List tables of the documentation that are older than the code they measure.

    python -m benchmarks.docs_age [--strict]

Below a table of figures, a line names the command that made it and the commit:

    Figures: `python -m benchmarks.cost --threads 1` at `0be32a6`.

For each table, the commits are counted that have changed its benchmark, or the code it measures, since then. A missing
line, an unknown command, and a commit that is not in the history are faults; with `--strict` old tables are too.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Row, report

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("where", "commit", "of", "newer", "lines", "command")
_STAMP = re.compile(r"Figures: `python -m (?P<command>(?P<module>[\w.]+)[^`]*)`.* at `(?P<commit>[0-9a-f]{7,40})`")
_FIGURE = re.compile(r"^[^a-zA-Z]*\d[\d.,]*\s*(%|x)?(\s*\([^)]*\))?[*\s]*$")
# What a benchmark measures if it is not the whole library, which always excludes the command line.
MEASURED = {
    "benchmarks.formats": ("formats", "linalg"),
    "benchmarks.slr": ("formats", "linalg", "importance"),
    "benchmarks.kernels": ("formats", "kernels"),
    "benchmarks.latency": ("formats", "latency", "planning", "ranks"),
    "benchmarks.deploy": ("formats", "export", "artifact", "ranks", "factorisation"),
    "benchmarks.orthogonal": ("training",),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of figures in the documentation.

    Attributes:
        where: file and line.
        module: module of the command that made it; None if no line says so.
        command: the whole command.
        commit: commit at which it was run.
    """

    where: str
    module: str | None = None
    command: str = ""
    commit: str = ""


def tables(path: Path) -> Iterator[Table]:
    """The tables of a page in which at least half of the rows hold two figures or more."""
    lines = path.read_text(encoding="utf-8").split("\n")
    number = 0
    while number < len(lines):
        begin = number
        while number < len(lines) and lines[number].startswith("|"):
            number += 1
        if number == begin:
            number += 1
            continue
        rows = [line.strip("|").split("|") for line in lines[begin + 2 : number]]
        full = sum(sum(bool(_FIGURE.match(cell.strip())) for cell in row) >= 2 for row in rows)
        if rows and 2 * full >= len(rows):
            where = f"{path.name}:{begin + 1}"
            below = next((line for line in lines[number : number + 3] if line), "")
            if stamp := _STAMP.search(below):
                yield Table(where=where, **stamp.groupdict())
            else:
                yield Table(where=where)


def pages() -> list[Path]:
    """The README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fault(table: Table) -> str | None:
    """What is wrong with the line below a table; None if nothing is."""
    if table.module is None:
        return "no line below says which command made it, at which commit"
    if importlib.util.find_spec(table.module) is None:
        return f"there is no {table.module}"
    return None


def age(table: Table) -> Row:
    """Commits and changed lines of the code that a table measures, since it was made.

    Raises:
        ValueError: if the commit is not in the history.
    """
    assert table.module is not None
    paths = [f"src/rankwise/{part}" for part in MEASURED.get(table.module, ())] or [
        "src/rankwise",
        ":!src/rankwise/cli",
        ":!src/rankwise/export",
    ]
    paths.append(f"{table.module.replace('.', '/')}.py")
    since = [f"{table.commit}..HEAD", "--", *paths]
    newer = _git("log", "--format=%h", *since).split()
    lines = sum(map(int, re.findall(r"(\d+) (?:insertion|deletion)", _git("diff", "--shortstat", *since))))
    return {
        "where": table.where,
        "commit": table.commit,
        "of": _git("log", "-1", "--format=%cs", table.commit).strip(),
        "newer": len(newer),
        "lines": lines,
        "command": table.command,
    }


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(run.stderr.strip().partition("\n")[0])
    return run.stdout


def main() -> None:
    """List all tables, the oldest first."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--strict", action="store_true", help="end with status 1 if a table is older than its code")
    strict = options.parse_args().strict
    rows: list[Row] = []
    faults: list[str] = []
    for table in (table for page in pages() for table in tables(page)):
        wrong = fault(table)
        try:
            if wrong is None:
                rows.append(age(table))
        except ValueError as error:
            wrong = f"commit {table.commit}: {error}"
        if wrong is not None:
            faults.append(f"{table.where}: {wrong}")
    old = [row for row in rows if row["newer"]]
    report(
        sorted(rows, key=lambda row: -row["lines"]),
        COLUMNS,
        f"{len(old)} of {len(rows)} tables are older than their code",
    )
    print("\n".join(faults))
    sys.exit(bool(faults) or (strict and bool(old)))


if __name__ == "__main__":
    main()

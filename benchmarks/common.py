"""Shared by the benchmarks: the command line, the data folder, tables and rows."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="a short version, for a first look")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--threads", type=int, default=torch.get_num_threads())
    result.add_argument("--json", type=Path, help="write the rows to this file")
    return result


def start(arguments: argparse.Namespace) -> None:
    """Set threads and seed, and print the command and the machine."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    print(f"$ python -m {sys.modules['__main__'].__spec__.name} {' '.join(sys.argv[1:])}")
    print(f"torch {torch.__version__}, {arguments.threads} threads, seed {arguments.seed}")


def networks() -> ModuleType:
    """The module with the trained networks and data, from RANKWISE_DATA (default ../shared/data).

    Raises:
        SystemExit: if the folder is not there.
    """
    folder = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    spec = importlib.util.spec_from_file_location("networks", folder / "networks.py")
    if spec is None or spec.loader is None or not (folder / "networks.py").exists():
        raise SystemExit(
            f"the benchmark needs trained networks: set RANKWISE_DATA to their folder ({folder} is missing)"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module
    spec.loader.exec_module(module)
    return module


def report(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path | None = None) -> None:
    """Print the rows as a table, and write them as JSON without figures that were not measured."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("network", "method", "what") else "right")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    Console(width=160).print(table)
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each variant, run one after the other in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)

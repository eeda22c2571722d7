"""The command line as users know it: its options are a promise, its help teaches, and it answers at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer.main

from rankwise.cli.app import app

TELLING = {"--json", "--debug", "--quiet", "--verbose", "--log", "--config", "--help"}
SHARED = {*TELLING, "--seed"}
LONG = {*SHARED, "--dry-run"}
DATA = {"--transform", "--size", "--normalise", "--root", "--split", "--batches", "--example-batch", "--length"}
BUDGET = {
    "--keep", "--rule", "--floor-rule", "--target-drop", "--minimise", "--formats", "--metric", "--ignore", "--include",
    "--pin", "--floor", "--cap", "--tie", "--uniform", "--round-to", "--stats", "--shrink", "--method-set",
}  # fmt: skip
JUDGE = {"--metric", "--classes-dim"}
TIMING = {"--threads", "--engines", "--latency-batch"}
TIMED = {"--engine", "--threads", "--latency-batch"}
EVERY = SHARED | DATA | {"MODEL", "--weights", "--random-weights", "--batch", "--samples"}
WORK = EVERY | LONG
OPTIONS = {
    "inspect": SHARED | DATA | {"MODEL", "--weights", "--random-weights", "--data", "--input-shape"},
    "collect": WORK | {"DATA", "--out", "--ignore", "--rows", "--gradients"},
    "compress": WORK
    | JUDGE
    | BUDGET
    | TIMING
    | TIMED
    | {"[DATA]", "--out", "--test", "--method", "--input-shape", "--importance", "--refit-samples"}
    | {"--fold", "--storage", "--checkpoint", "--resume", "--report"},
    "scan": WORK
    | JUDGE
    | TIMING
    | TIMED
    | (BUDGET - {"--keep", "--target-drop", "--minimise"})
    | {"[DATA]", "--out", "--input-shape", "--test", "--along", "--at", "--within", "--resume"},
    "report": SHARED | {"ARTIFACT", "--out", "--picture", "--stored"},
    "compare": TELLING | {"ARTIFACT", "OTHER", "--out"},
    "plan": WORK | JUDGE | BUDGET | TIMED | {"[DATA]", "--out", "--input-shape", "--test"},
    "pareto": WORK
    | JUDGE
    | TIMED
    | (BUDGET - {"--keep", "--target-drop", "--minimise"})
    | {"[DATA]", "--out", "--input-shape", "--test", "--along", "--at", "--own", "--measure"},
    "apply": WORK
    | JUDGE
    | TIMING
    | {"PLAN", "[DATA]", "--out", "--test", "--method", "--stats", "--shrink", "--input-shape", "--importance"}
    | {"--fold", "--storage", "--refit-samples"},
    "heal": WORK
    | JUDGE
    | TIMING
    | {"DATA", "--artifact", "--out", "--test", "--minutes", "--epochs", "--augment", "--blocks", "--train", "--rate"}
    | {"--temperature", "--labels", "--regression", "--checkpoint", "--resume"},
    "train": WORK
    | JUDGE
    | TIMING
    | {"DATA", "--out", "--test", "--expand", "--orthogonal", "--schedule", "--rule", "--keep", "--ignore", "--include"}
    | {"--epochs", "--minutes", "--tune", "--calibration", "--augment", "--rate", "--optimiser", "--patience"}
    | {"--checkpoint", "--resume", "--device", "--tune-rate", "--technique"},
    "unified": WORK
    | JUDGE
    | TIMING
    | {"DATA", "--out", "--test", "--keep", "--formats", "--learn", "--aim", "--rounds", "--candidates", "--search"}
    | {"--dissimilarity", "--labels", "--epochs", "--minutes", "--augment", "--rate", "--checkpoint", "--resume"},
    "evaluate": EVERY
    | JUDGE
    | TIMING
    | {"DATA", "--artifact", "--stored", "--roofline"}
    | {"--context", "--stride", "--start-token", "--choices", "--neighbours", "--generate"},
    "export": SHARED
    | DATA
    | {
        "MODEL",
        "--weights",
        "--random-weights",
        "--artifact",
        "--data",
        "--input-shape",
        "--out",
        "--absorb",
        "--cache",
    }
    | {
        "--to",
        "--dtype",
        "--calibration",
        "--samples",
        "--fold",
        "--opset",
        "--fixed-batch",
        "--threads",
        "--dynamic-axes",
    },
    "formats": {"[NAME]", "--conv", "--linear", "--for", "--threads", *TELLING},
    "verify": {"PATH", *TELLING},
    "roofline": {"--out", "--engine", "--threads", *TELLING},
    "doctor": TELLING,
    "demo": SHARED | {"--out", "--threads"},
}


def parameters(command: Any) -> set[str]:
    names = set()
    for parameter in command.params:
        long = [name for name in parameter.opts if name.startswith("--")]
        names.add(long[0] if long else parameter.metavar)
    return names | {"--help"}


def test_the_options_are_a_promise() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {name: parameters(command) for name, command in commands.items()} == OPTIONS


@pytest.mark.parametrize("command", OPTIONS)
def test_help_holds_an_example(cli: Callable[..., Any], command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert f"Example: rankwise {command}" in " ".join(result.stdout.split())


def test_help_names_every_command_and_the_exit_codes(cli: Callable[..., Any]) -> None:
    text = cli("--help").stdout
    assert all(name in text for name in OPTIONS)
    assert "Exit codes" in text


def test_version(cli: Callable[..., Any]) -> None:
    from importlib.metadata import version

    assert cli("--version").stdout.strip() == f"rankwise {version('rankwise')}"


def test_module_and_entry_point_are_the_same() -> None:
    result = subprocess.run([sys.executable, "-m", "rankwise", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("rankwise ")


def test_an_unknown_option_is_a_usage_error(cli: Callable[..., Any]) -> None:
    assert cli("compress", "nets.py:build", "data.npz", "--keeep", "macs=0.5").exit_code == 2
    assert cli("shrink").exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compress",), "error: Missing argument 'MODEL' ("),
        (("inspect", "nets.py:build", "--seeed", "1"), "error: No such option: --seeed"),
        (("inspect", "nets.py:build", "--seed", "x"), "error: Invalid value for '--seed'"),
        (("comp",), "error: No such command 'comp'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    cli: Callable[..., Any], words: tuple[str, ...], message: str
) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1

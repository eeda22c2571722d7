"""Runs as files: what a run writes beside its result repeats it, and mistakes in such a file are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.cli.config import Given
from rankwise.cli.options.choosing import Budget
from rankwise.cli.options.data import Calibration, Network

OUT = ("-o", "a.yaml")
PLAN = ("plan", "nets.py:build", "--weights", "net.pt", "--input-shape", "3,8,8", "--metric", "weight")


def test_a_run_is_written_beside_its_result_and_repeats_it(project: Path, cli: Callable[..., Any]) -> None:
    made = cli(
        *PLAN, "--keep", "macs=0.5", "--keep", "params=0.9", "--engine", "none", "--example-batch", "-o", "a.yaml"
    )
    assert made.exit_code == 0, made.output
    run = yaml.safe_load(Path("a.run.yaml").read_text())
    assert run == {
        "command": "plan",
        "model": "nets.py:build",
        "weights": "net.pt",
        "input-shape": "3,8,8",
        "metric": ["weight"],
        "keep": ["macs=0.5", "params=0.9"],
        "engine": "none",
        "example-batch": True,
        "out": "a.yaml",
    }
    again = cli("plan", "--config", "a.run.yaml", "-o", "b.yaml")
    assert again.exit_code == 0, again.output
    assert Path("a.yaml").read_text() == Path("b.yaml").read_text()
    assert yaml.safe_load(Path("b.run.yaml").read_text()) == {**run, "out": "b.yaml"}


def test_the_command_line_wins(project: Path, cli: Callable[..., Any]) -> None:
    Path("run.yaml").write_text(
        "command: plan\nmodel: nets.py:build\ninput-shape: 3,8,8\nmetric: weight\nkeep: macs=0.9\n"
    )
    for words, keep in (((), 0.9), (("--keep", "macs=0.4"), 0.4)):
        result = cli("plan", "--config", "run.yaml", *words, "--engine", "none", "--json", "-")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["plan"]["keep"] == {"macs": keep}
    wider = cli("plan", "nets.py:wider", "--config", "run.yaml", "--engine", "none", "--json", "-")
    assert len(json.loads(wider.stdout)["plan"]["rows"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command: compress\n", "--config run.yaml is of rankwise compress, not of rankwise plan"),
        ("keep: macs=0.5\n", "it must hold `command: compress`"),
        ("command: plan\nkepe: macs=0.5\n", "--config run.yaml: unknown option 'kepe'; did you mean keep"),
        ("a: [", "cannot read the run 'run.yaml'"),
    ],
)
def test_mistakes_in_the_file_are_told(project: Path, cli: Callable[..., Any], text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    result = cli("plan", "--config", "run.yaml")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_is_a_command_line_and_groups_of_options() -> None:
    options = {
        "keep": ["macs=0.5"],
        "model": "my nets.py:build",
        "data": "x.npz",
        "batch": "8",
        "fold": True,
        "size": 32,
    }
    run = Given(command="compress", options=options, arguments=("model", "data"))
    assert run.line == "rankwise compress 'my nets.py:build' x.npz --keep macs=0.5 --batch 8 --fold --size 32"
    assert run.group(Network) == Network(model="my nets.py:build")
    assert run.group(Calibration) == Calibration(data="x.npz", batch=8, size=32)
    assert run.group(Budget).keep == ["macs=0.5"]

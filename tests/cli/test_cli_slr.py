"""Sparse low rank from the command line: the parameters of the paper, how neurons are selected, what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise import Plan
from rankwise.cli.options.choosing import Budget

MODEL = ("nets.py:build", "data.npz", "--weights", "net.pt")
PINNED = ("--include", "7", "--pin", "7=slr:k=8,sr=0.5,rr=0.25", "--keep", "params=1.0", "--formats", "svd")
OUT = ("--engines", "none", "-o", "out")


@pytest.mark.parametrize("importance", ["weight:published", "cost", "curvature"])
def test_compress_as_published(project: Path, cli: Callable[..., Any], importance: str) -> None:
    result = cli("compress", *MODEL, *PINNED, *OUT, "--method", "one-shot", "--importance", importance, "--json", "-")
    assert result.exit_code == 0, result.output
    row = Plan.load(project / "out" / "plan.yaml")["7"]
    assert (row.format, row.ranks) == ("slr", (2, 6, 16, 12))
    assert ("the loss of the labels" in result.stderr) == (importance in ("cost", "curvature"))
    measured = cli("evaluate", *MODEL, "--artifact", "out", "--engines", "none", "--stored", "--json", "-")
    assert measured.exit_code == 0, measured.output
    (layer,) = json.loads(measured.stdout)["stored"]["layers"]
    assert (layer["format"], layer["index_bytes"]) == ("slr", 4 * (16 + 24))
    assert layer["nonzeros"] == 2 * (32 + 24) + 6 * (16 + 12) + 24


def test_apply_selects_too(project: Path, cli: Callable[..., Any]) -> None:
    assert cli("compress", *MODEL, *PINNED, *OUT).exit_code == 0
    again = ("apply", MODEL[0], "out/plan.yaml", *MODEL[1:], "-o", "again", "--engines", "none")
    assert cli(*again, "--importance", "weight").exit_code == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (("--importance", "size"), "--importance 'size': write one of weight, activation, cost, curvature"),
        (("--importance", "weight:refit"), "with :published to keep"),
        (("--importance", "weight", "--formats", "svd"), "no layer of the plan is in slr"),
    ],
)
def test_complaints(project: Path, cli: Callable[..., Any], options: tuple[str, ...], message: str) -> None:
    result = cli("compress", *MODEL, "--keep", "params=0.8", *OUT, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("fc=slr:k=16,sr=0.5,rr=0.5", {"fc": "slr:k=16,sr=0.5,rr=0.5"}),
        ("re:^a=b$=svd:4", {"re:^a=b$": "svd:4"}),
        ("fc=dense", {"fc": "dense"}),
    ],
)
def test_pins_with_settings(text: str, expected: dict[str, str]) -> None:
    assert Budget(keep=["macs=0.5"], pin=[text]).wishes("input")["pin"] == expected

"""`rankwise report`, `compare`, `scan` and `--dry-run` on a small network of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.report.scanning import wilson

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")

COMMON = ("nets.py:build", "data.npz", "--weights", "net.pt", "--engine", "none", "--engines", "none")


SECTIONS = ("Other budgets", "Singular values", "Answers that changed", "Repeat this run", "Error curves")


def check(page: str) -> None:
    """The page holds everything that can be known of the run."""
    assert "Sequential, compressed to" in page
    assert [section for section in SECTIONS if section not in page] == []
    assert "rankwise compress nets.py:build data.npz --weights net.pt" in page
    assert "measured on the calibration samples themselves" in page.lower()


def test_a_page_is_written_with_the_run(project: Path, cli: Callable[..., Any]) -> None:
    made = cli("compress", *COMMON, "--keep", "macs=0.5", "-o", "out", "--report")
    assert made.exit_code == 0, made.output
    check(Path("out/report.html").read_text())
    beside = cli("compare", "out", "out")
    assert beside.exit_code == 0, beside.output
    assert "parameters" in beside.stdout
    Path("nets.py").rename("moved.py")
    lost = cli("report", "out")
    assert lost.exit_code == 2
    assert "or with --stored" in lost.stderr


@pytest.mark.slow
def test_a_page_is_written_after_the_run(project: Path, cli: Callable[..., Any]) -> None:
    assert cli("compress", *COMMON, "--keep", "macs=0.5", "-o", "out").exit_code == 0
    later = cli("report", "out", "-o", "later.html", "--picture", "front.png", "--json", "-")
    assert later.exit_code == 0, later.output
    check(Path("later.html").read_text())
    assert json.loads(later.stdout)["missing"] == []
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    assert cli("report", "out", "--stored").exit_code == 0
    Path("out/run.yaml").unlink()
    alone = cli("report", "out")
    assert alone.exit_code == 0
    assert "out holds no run.yaml" in alone.stderr
    assert cli("compare", "out", "out", "-o", "beside.html").exit_code == 0
    assert Path("beside.html").is_file()


SCAN = ("scan", *COMMON, "--at", "0.8,0.5,0.001", "--within", "100", "-o", "scan")


def test_a_scan_measures_recommends_and_resumes(
    project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwise.session import Session

    built: list[float] = []
    trial = Session.trial

    def stopped(self: Session, plan: Any, method: str | None = None) -> Any:
        built.append(plan.keep["macs"])
        if len(built) == 2:
            raise KeyboardInterrupt
        return trial(self, plan, method)

    monkeypatch.setattr(Session, "trial", stopped)
    first = cli(*SCAN)
    assert first.exit_code == 130
    assert "--resume goes on from there" in first.stderr
    again = cli(*SCAN)
    assert again.exit_code == 2
    assert "holds a scan that was stopped" in again.stderr
    done = cli(*SCAN, "--resume", "--json", "-")
    assert done.exit_code == 0, done.output
    assert built == [0.8, 0.5, 0.5]
    told = json.loads(done.stdout)
    assert [row["keep"] for row in told["rows"]] == [0.8, 0.5]
    assert told["recommended"] == 0.5
    assert "smaller budgets are left out" in done.stderr
    for row in told["rows"]:
        assert row["compressed"]["macs"] <= row["keep"] * row["dense"]["macs"]
        assert row["interval"][0] <= row["compressed"]["top1"] <= row["interval"][1]
    names = {file.name for file in Path("scan").iterdir() if file.is_file()}
    assert {"front.svg", "front.png", "front.json", "plan-0.5.yaml", "plan-0.8.yaml", "front.run.yaml"} <= names


@pytest.mark.parametrize("command", ["compress", "plan", "pareto", "scan"])
def test_a_dry_run_says_what_it_will_take_and_writes_nothing(
    project: Path, cli: Callable[..., Any], command: str
) -> None:
    words = {"compress": ("--keep", "macs=0.5", "-o", "out"), "plan": ("--keep", "macs=0.5")}.get(command, ())
    engines = COMMON if command in ("compress", "scan") else COMMON[:-2]
    before = set(Path().rglob("*"))
    result = cli(command, *engines, *words, "--dry-run", "--json", "-")
    assert result.exit_code == 0, result.output
    assert "nothing was written; it may take about" in result.stderr
    told = json.loads(result.stdout)
    assert (told["command"], told["sites"], told["free"]) == ("forecast", 4, 4)
    assert told["total_seconds"] > 0
    assert {path for path in set(Path().rglob("*")) - before if "__pycache__" not in path.parts} == set()


def test_intervals_are_those_of_wilson() -> None:
    assert wilson(50.0, 100) == pytest.approx((40.38, 59.62), abs=0.01)  # as in textbooks
    assert wilson(100.0, 10)[1] == pytest.approx(100.0)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)

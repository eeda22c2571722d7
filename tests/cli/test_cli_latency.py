"""Latency budgets on the command line, for a device of known numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAN = ("plan", "nets.py:build", "data.npz", "--weights", "net.pt", "--engine", "roofline:paper.yaml")


@pytest.fixture(autouse=True)
def _device(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(project / "cache"))
    Path("paper.yaml").write_text("{name: paper, peak: 1.0e+9, bandwidth: 1.0e+12}")


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_share_and_what_came_out(cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--keep", "latency=0.6", "--round-to", "2")
    assert result.exit_code == 0, result.output
    plan = yaml.safe_load(Path("plan.yaml").read_text())
    assert plan["keep"] == {"latency": 0.6}
    assert plan["planned"]["latency"] <= 0.6 * plan["dense"]["latency"] + 0.01
    figures = plan["latency"]
    assert figures["measured"] <= 0.6 * figures["dense"] * 1.001
    said = words(result.stdout)
    assert f"predicted {figures['predicted']:.3g} ms (" in said
    assert f"computed {figures['measured']:.3g} ms, dense {figures['dense']:.3g} ms, roofline of paper" in said
    assert ("on this very network, blindly" in said) == (figures["corrections"] > 0)
    assert "all latency" in result.stdout


def test_a_time_beside_another_budget(cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--keep", "latency=350us", "--keep", "params=0.8", "--round-to", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["keep"] == {"latency": 350, "params": 0.8}
    assert plan["planned"]["latency"] <= 350


def test_compress_stores_the_figures(cli: Callable[..., Any]) -> None:
    result = cli("compress", *PLAN[1:], "--keep", "latency=0.7", "--round-to", "2", "-o", "out", "--engines", "none")
    assert result.exit_code == 0, result.output
    assert "predicted" in result.stdout
    assert json.loads(Path("out/rankwise.json").read_text())["plan"]["latency"]["device"] == "paper"


def test_pareto_along_latency(cli: Callable[..., Any]) -> None:
    result = cli("pareto", *PLAN[1:], "--along", "latency", "--at", "0.9,0.7", "--round-to", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert all(row["latency_ratio"] <= row["keep"] + 1e-5 for row in rows)
    assert Path("pareto/plan-latency-0.7.yaml").exists()


def test_a_roofline_of_this_machine(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwise.latency.roofline import Device

    device = Device(name="measured", peak=2e9, bandwidth=3e9, tile=16, overhead=1e-6)
    monkeypatch.setattr("rankwise.latency.roofline_fit.measured_device", lambda engine: device)
    result = cli("roofline", "-o", "here.yaml", "--engine", "torch", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert Device.load("here.yaml") == device
    assert "2 GMAC/s, 3 GB/s, channels in multiples of 16, 1 us" in words(result.stdout)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--keep", "latency=8"], "a latency is a fraction (0.6, 60%) or a time with its unit (8ms, 800us)"),
        (["--keep", "latency=soons"], "the latency 'soons' is not a time such as 8ms"),
        (["--keep", "latency=0.01"], "microseconds (0.010 of dense) cannot be met"),
        (["--keep", "latency=0.5", "--engine", "abacus"], "unknown engine 'abacus'; the engines are torch"),
        (["--keep", "macs=0.5", "--minimise", "latency"], "--minimise latency has no effect without --target-drop"),
        (["--keep", "latency=0.5", "--threads", "4"], "threads=4 has no effect on engine 'roofline of paper'"),
        (["--keep", "latency=0.5", "--latency-batch", "1000"], "--latency-batch 1000 is more than the"),
    ],
)
def test_complaints(cli: Callable[..., Any], options: list[str], message: str) -> None:
    result = cli(*PLAN, *options)
    assert result.exit_code == 2
    assert message in words(result.stderr)

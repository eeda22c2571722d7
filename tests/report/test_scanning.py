"""Which network of a front is recommended."""

from __future__ import annotations

from typing import Any

import pytest

from rankwise.evaluate import Measure
from rankwise.report.scanning import Scanned, wilson

ACCURACY = Measure(key="accuracy", title="accuracy", higher=True, unit="%")
AGREEMENT = Measure(key="agreement", title="agreement", higher=True, unit="%", best=100.0)


def row(top1: float, *, macs: int = 50, **speeds: tuple[float, float]) -> dict[str, Any]:
    ratios = {f"speedup_{name}": {"median": m, "low": low, "high": m + 1} for name, (m, low) in speeds.items()}
    small = {"params": 10, "macs": macs, "top1": top1, "agreement": top1, **ratios}
    return {"dense": {"params": 20, "macs": 100, "top1": 92.0}, "compressed": small}


def scanned(rows: dict[float, Any], within: float = 1.0, judge: Measure = ACCURACY) -> Scanned:
    return Scanned.of("macs", rows, judge, 1000, within)


def test_the_fastest_within_the_loss_is_recommended() -> None:
    rows = {
        0.8: row(92.0, torch=(1.1, 1.05)),
        0.6: row(91.2, torch=(1.4, 1.3), onnxruntime=(1.6, 1.5)),
        0.5: row(91.0, torch=(1.5, 0.9)),  # perhaps not faster at all
        0.3: row(85.0, torch=(2.5, 2.4)),  # loses too much
    }
    found = scanned(rows)
    assert found.recommended == 0.6
    assert "fastest in onnxruntime (1.60 times as fast)" in found.reason
    assert scanned(rows, within=8).recommended == 0.3


def test_without_a_speed_up_it_is_the_smallest_within_the_loss() -> None:
    found = scanned({0.8: row(92.0), 0.5: row(91.5), 0.3: row(80.0)})
    assert (found.recommended, found.reason.split(" of ")[0]) == (0.5, "the smallest in macs")


def test_none_is_recommended_where_all_lose_too_much() -> None:
    found = scanned({0.8: row(90.0)})
    assert (found.recommended, found.reason) == (None, "")


def test_agreement_is_compared_with_a_perfect_one() -> None:
    found = scanned({0.8: row(99.5), 0.5: row(98.0)}, judge=AGREEMENT)
    assert found.recommended == 0.8
    assert found.lost(0.5) == pytest.approx(2.0)


def test_the_picture_and_the_document_hold_the_same() -> None:
    found = scanned({0.8: row(92.0, macs=79), 0.5: row(91.5, macs=49)})
    front = found.front()
    assert [(each.share, each.value, each.chosen) for each in front.points] == [(0.79, 92.0, False), (0.49, 91.5, True)]
    assert front.reference == 92.0
    document = found.document()
    assert [each["interval"] for each in document["rows"]] == [wilson(92.0, 1000), wilson(91.5, 1000)]
    assert document["recommended"] == 0.5

"""Repeated blocks share a row; nothing is lost or counted twice."""

from __future__ import annotations

from rankwise.network.repeats import folded


def titles(*names: tuple[str, object]) -> list[str]:
    return [each.title for each in folded(names)]


def test_blocks_are_folded_where_they_are_alike() -> None:
    names = [(f"layer1.{block}.conv{number}", "16") for block in range(3) for number in (1, 2)]
    assert titles(("conv1", "3"), *names) == ["conv1", "layer1.[0-2].conv1", "layer1.[0-2].conv2"]


def test_other_values_and_other_places_stay_apart() -> None:
    assert titles(("a.0.x", 1), ("a.1.x", 2), ("a.2.x", 1)) == ["a.[0,2].x", "a.1.x"]
    assert titles(("0", 1), ("1", 1), ("fc", 1)) == ["[0-1]", "fc"]


def test_every_name_stands_once() -> None:
    names = [(f"{a}.{b}.w", (a + b) % 2) for a in range(4) for b in range(3)]
    groups = folded(names)
    assert sorted(name for group in groups for name in group.names) == sorted(name for name, _ in names)
    values = dict(names)
    assert all(len({values[name] for name in group.names}) == 1 for group in groups)

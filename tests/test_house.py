"""The structure of the source holds: imports go one way, no name hides a module, functions stay small."""

from __future__ import annotations

import importlib
import warnings
from functools import cache

import pytest
from benchmarks import house

import rankwise as rw
from rankwise._moved import MOVED

# From the ground up: a room imports from those in the lines before it, and from none of its own line.
FLOORS = (
    ("_moved", "demo", "files", "layers", "linalg", "names", "timing"),
    ("drawing", "metrics", "running"),
    ("network",),
    ("formats", "plan", "statistics"),
    ("importance", "ranks", "surgery"),
    ("export", "work"),
    ("factorisation", "latency"),
    ("artifact", "evaluate", "planning"),
    ("describe", "inputs", "kernels", "session", "training"),
    (
        *("figures", "integrations", "ordered", "penalties", "preset", "projections", "subspace", "unified"),
        "verification",
    ),
    ("report", "spectral"),
    ("techniques",),
    ("cli",),
    ("__main__",),
)
MOST_PARAMETERS = 12
LONGEST_COMMAND = 60


@cache
def modules() -> dict[str, house.Module]:
    return house.modules_of(house.SOURCE)


def test_imports_go_one_way() -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    arrows = house.between_rooms(modules())
    assert arrows.keys() == floor_of.keys()
    wrong = [(room, other) for room, others in arrows.items() for other in others if floor_of[other] >= floor_of[room]]
    assert not wrong


def test_no_file_is_in_a_circle() -> None:
    arrows = {name: module.imports for name, module in modules().items() if name}
    assert house.circles(arrows) == []


def test_circles_are_found() -> None:
    arrows = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("ad"), "e": frozenset("a")}
    assert house.circles(arrows) == [["a", "b", "c"], ["d"]]


def test_few_modules_at_the_top() -> None:
    assert house.house().top_level_modules <= 8


def test_functions_take_few_parameters() -> None:
    apart = ("kernels.triton_low_rank", "_kernel")  # a GPU kernel takes pointers, sizes and strides one by one
    many = [
        (f"{home}.{function.name}", house.parameters(function))
        for home, function in house.functions(modules())
        if home.partition(".")[0] != "cli"
        and (home, function.name) != apart
        and house.parameters(function) > MOST_PARAMETERS
    ]
    assert not many


def test_commands_are_short() -> None:
    long = [
        (f"{home}.{function.name}", length)
        for home, function in house.functions(modules())
        if home.partition(".")[0] == "cli" and (length := house.length(function)) > LONGEST_COMMAND
    ]
    assert not long


def test_no_name_hides_a_module() -> None:
    for name in modules():
        if not name or name == "__main__" or "triton" in name:
            continue
        module = importlib.import_module(f"rankwise.{name}")
        parent, _, last = f"rankwise.{name}".rpartition(".")
        assert getattr(importlib.import_module(parent), last) is module


@pytest.mark.parametrize("name", [name for name in rw.__all__ if hasattr(getattr(rw, name), "__module__")])
def test_every_public_name_can_be_imported_by_its_path(name: str) -> None:
    value = getattr(rw, name)
    assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("old", MOVED)
def test_earlier_paths_of_modules_go_on_to_work(old: str) -> None:
    functions = {name: getattr(rw, name) for name in rw.__all__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert importlib.import_module(f"rankwise.{old}") is importlib.import_module(f"rankwise.{MOVED[old]}")
    assert {name: getattr(rw, name) for name in rw.__all__} == functions

"""Times beside other processes: waiting does not count, slow moments are scaled or left out; the clocks are numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from rankwise.timing.clock import in_turns, timed
from rankwise.timing.product import Product, Run


class Machine:
    """Clocks of a machine that is slow, or gives the core away, in some of the runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.thread = self.elsewhere = 0.0
        self.slow = 1.0
        self.products = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "thread_time", lambda: self.thread)
        monkeypatch.setattr(time, "process_time", lambda: self.thread + self.elsewhere)
        monkeypatch.setattr(torch, "mm", self.multiply)

    def multiply(self, *_: object, **__: object) -> None:
        self.work(1e-5)
        self.products += 1

    def work(self, seconds: float, waits: float = 0.0, others: float = 0.0) -> None:
        """Work for some seconds; then wait for the core, or for other threads of the process."""
        self.thread += self.slow * seconds
        self.wall += self.slow * seconds + waits
        self.elsewhere += others


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def every(count: int, seldom: Callable[[], None], usual: Callable[[], None]) -> Callable[[], None]:
    """A run that does something else every so many times."""
    done = [0]

    def run() -> None:
        done[0] += 1
        (usual if done[0] % count else seldom)()

    return run


def test_waiting_for_the_core_does_not_count(machine: Machine) -> None:
    run = every(2, lambda: machine.work(1e-3, waits=4e-3), lambda: machine.work(1e-3))
    assert in_turns({"a": run}, 8, 0, product=Product())["a"] == pytest.approx([1e-3] * 8)
    assert max(in_turns({"a": run}, 8, 0)["a"]) == pytest.approx(5e-3)  # without a product the wall clock counts


def test_slow_moments_are_scaled(machine: Machine) -> None:
    def run() -> None:
        machine.work(1e-3)

    def before() -> None:  # the product has run; from here to the next one the machine is slow or not
        machine.slow = 2.0 if machine.products % 4 >= 2 else 1.0

    found = timed({"a": run, "b": run}, rounds=20, before={"a": before, "b": before}, product=Product(), narrow=0.1)
    assert found["a"].median == pytest.approx(1e-3, rel=1e-6)
    assert found["b"].median == pytest.approx(1e-3, rel=1e-6)


def test_a_machine_that_is_always_slow_is_measured_as_it_is(machine: Machine) -> None:
    machine.slow = 3.0
    assert timed({"a": lambda: machine.work(1e-3)}, rounds=8, product=Product())["a"].median == pytest.approx(3e-3)


def test_work_of_other_threads_counts(machine: Machine) -> None:
    found = in_turns({"a": lambda: machine.work(1e-3, waits=2e-3, others=1.5e-3)}, 8, 0, product=Product())
    assert found["a"] == pytest.approx([3e-3] * 8)


def test_wide_intervals_are_measured_again(machine: Machine) -> None:
    counts = {"steady": 0, "restless": 0}

    def run(name: str, *seconds: float) -> Callable[[], None]:
        def each() -> None:
            machine.work(seconds[counts[name] % len(seconds)])
            counts[name] += 1

        return each

    timed({"steady": run("steady", 0.02), "restless": run("restless", 0.02, 0.04, 0.06)}, rounds=10, warmup=0,
          product=Product(), narrow=0.1)  # fmt: skip
    assert counts == {"steady": 10, "restless": 50}


def test_runs_go_on_until_there_were_enough_good_moments(machine: Machine) -> None:
    """The first tenth of a second is slow: every call takes ten microseconds longer, which no factor corrects."""
    product = Product()
    machine.slow = 3.0
    added = [10e-6]

    def run() -> None:
        if machine.wall > 0.1:
            machine.slow, added[0] = 1.0, 0.0
        machine.work(20e-6 / machine.slow)
        machine.work(added[0] / machine.slow)

    assert timed({"a": run}, rounds=20, product=product, narrow=0.05)["a"].median == pytest.approx(20e-6, rel=1e-6)


def test_a_product_remembers_how_fast_the_machine_can_be(machine: Machine) -> None:
    product = Product()
    timed({"a": lambda: machine.work(1e-3)}, rounds=20, product=product)
    runs = [Run(1e-3, 1e-3, 1e-3, place) for place in range(len(product.seconds) - 9, len(product.seconds))]
    assert product.good(runs) == list(range(9))
    machine.slow = 2.0
    timed({"a": lambda: machine.work(1e-3)}, rounds=20, product=product)
    runs = [Run(2e-3, 2e-3, 2e-3, place) for place in range(len(product.seconds) - 9, len(product.seconds))]
    assert product.good(runs) == []
    assert product.own(runs, []) == pytest.approx([1e-3] * 6)  # of slow ones only, some are scaled

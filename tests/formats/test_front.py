"""The least error at no greater cost."""

from __future__ import annotations

import math
import random

from rankwise.formats import Cost
from rankwise.formats.front import Front


def test_the_least_error_in_the_unit_in_which_it_is_larger() -> None:
    draw = random.Random(0)
    options = [(Cost(draw.randint(1, 30), draw.randint(1, 30)), draw.random()) for _ in range(200)]
    front = Front(options[:50])
    front.add(options[50:])
    for _ in range(200):
        cost = Cost(draw.randint(0, 32), draw.randint(0, 32))
        by_unit = [min((e for c, e in options if c[unit] <= cost[unit]), default=math.inf) for unit in (0, 1)]
        assert front(cost) == max(by_unit)


def test_the_order_does_not_matter() -> None:
    options = [(Cost(4, 4), 0.5), (Cost(4, 4), 0.2), (Cost(2, 8), 0.3), (Cost(8, 2), 0.3)]
    cost = Cost(4, 5)
    assert Front(options)(cost) == Front(reversed(options))(cost) == 0.2
    assert Front()(cost) == math.inf

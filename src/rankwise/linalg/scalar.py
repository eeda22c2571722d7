"""Roots and minima of functions of one number, on an interval.

Source of the minimiser: Brent, "Algorithms for Minimization without Derivatives", 1973.
"""

from __future__ import annotations

import math
from collections.abc import Callable

GOLDEN = (3 - math.sqrt(5)) / 2


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes sign, to the last digits, by bisection; the upper end if it does not.

    Example:
        >>> round(root(lambda x: x * x - 2, 0, 2), 12)
        1.414213562373
    """
    rises = function(low) < 0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if (function(middle) < 0) == rises:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def local_minimum(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Brent's minimiser on an interval: parabolas through the three best points, golden sections where they fail.

    Args:
        function: to minimise; any of several local minima may be found.
        low, high: the interval.
        tolerance: absolute, for the place of the minimum.

    Example:
        >>> round(local_minimum(lambda x: (x - 1) ** 2, 0, 3, 1e-8), 6)
        1.0
    """
    best = second = third = low + GOLDEN * (high - low)
    f_best = f_second = f_third = function(best)
    step = before = 0.0
    for _ in range(500):
        middle, near = (low + high) / 2, 1.5e-8 * abs(best) + tolerance / 3
        if abs(best - middle) <= 2 * near - (high - low) / 2:
            break
        # The parabola through the three best points has its minimum at best + p / q.
        r, q = (best - second) * (f_best - f_third), (best - third) * (f_best - f_second)
        p, q = (best - third) * q - (best - second) * r, 2 * (q - r)
        p, q = (-p, q) if q > 0 else (p, -q)
        # Trust it inside the interval, and only if steps keep halving; else take a golden section.
        if abs(before) > near and abs(p) < abs(q * before / 2) and q * (low - best) < p < q * (high - best):
            before, step = step, p / q
            if min(best + step - low, high - best - step) < 2 * near:
                step = math.copysign(near, middle - best)
        else:
            before = (low if best >= middle else high) - best
            step = GOLDEN * before
        tried = best + (step if abs(step) >= near else math.copysign(near, step))
        f_tried = function(tried)
        if f_tried <= f_best:
            low, high = (best, high) if tried >= best else (low, best)
            third, f_third, second, f_second, best, f_best = second, f_second, best, f_best, tried, f_tried
        else:
            low, high = (tried, high) if tried < best else (low, tried)
            if f_tried <= f_second or second == best:
                third, f_third, second, f_second = second, f_second, tried, f_tried
            elif f_tried <= f_third or third in (best, second):
                third, f_third = tried, f_tried
    return best

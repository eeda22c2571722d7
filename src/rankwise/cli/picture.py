"""A line through points as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 60


def line_picture(points: Sequence[tuple[float, float]], *, x: str, y: str) -> str:
    """A picture of points joined by a line, with labelled axes.

    Args:
        points: pairs of finite numbers, joined in this order.
        x, y: titles of the axes.

    Example:
        >>> line_picture([(0.5, 1.0), (0.3, 2.0)], x="share", y="error").count("<circle")
        2
    """
    across, up = ticks([point[0] for point in points]), ticks([point[1] for point in points])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        part_x = (point[0] - across[0]) / (across[-1] - across[0])
        part_y = (point[1] - up[0]) / (up[-1] - up[0])
        return LEFT + part_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - part_y * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in across:
        at, _ = place((tick, up[0]))
        lines.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick:g}</text>')
    for tick in up:
        _, at = place((across[0], tick))
        lines.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    places = [place(point) for point in points]
    way = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    lines.append(f'<path d="M{way}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    lines += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="#2563eb"/>' for a, b in places]
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    lines.append(f'<text x="{middle_x:g}" y="{HEIGHT - 15}" text-anchor="middle">{escape(x)}</text>')
    turned = f'transform="rotate(-90 18 {middle_y:g})"'
    lines.append(f'<text x="18" y="{middle_y:g}" text-anchor="middle" {turned}>{escape(y)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers, evenly spaced, from below the least value to above the largest.

    Example:
        >>> ticks([0.31, 0.88])
        [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]

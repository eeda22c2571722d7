"""Draw the first table of the results: accuracy over the share of multiply-accumulates that is kept.

python docs/pictures/draw_results.py
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
# Row of the table -> its name in the picture, its colour, and how far the name is below its point at 0.5.
LINES = {
    "**Rankwise, chosen per layer**": ("Rankwise", "#1d6fb8", -12),
    "best published": ("best published", "#c2570c", 0),
    "SVD in the Frobenius norm": ("plain SVD", "#5f6b7a", -12),
}
DENSE = re.compile(r"ResNet-20, dense ([\d.]+)")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 64, 24, 24, 56
INK, GREY, RULE = "#1f2933", "#5f6b7a", "#d9dee5"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def read(page: str) -> tuple[float, list[float], dict[str, list[float]]]:
    """Dense accuracy, shares kept, and accuracies by row of the first table."""
    dense = DENSE.search(page)
    assert dense is not None
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page[dense.end() :].split("\n") if "|" in line
    ]
    shares = [float(cell.split()[-1]) for cell in rows[0][1:]]
    found = {}
    for start in LINES:
        row = next(row for row in rows if row[0].startswith(start))
        found[start] = [float(cell.strip("*").split()[0]) for cell in row[1:]]
    return float(dense[1]), shares, found


def text(x: float, y: float, words: str, colour: str = GREY, anchor: str = "middle", size: int = 14) -> str:
    """Words at a place."""
    style = f"{FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}'"
    return f"<text x='{x:g}' y='{y:g}' {style}>{escape(words)}</text>"


def picture(page: str) -> str:
    """The SVG."""
    dense, shares, rows = read(page)
    least, most = min(shares), 1.0

    def at(share: float, accuracy: float) -> tuple[float, float]:
        x = LEFT + (most - share) / (most - least) * (WIDTH - LEFT - RIGHT)
        return x, TOP + (100 - accuracy) / 100 * (HEIGHT - TOP - BOTTOM)

    parts = [f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>"]
    for accuracy in range(0, 101, 20):
        (x, y), (end, _) = at(most, accuracy), at(least, accuracy)
        parts += [
            f"<path d='M {x:g} {y:g} H {end:g}' stroke='{RULE}'/>",
            text(x - 8, y + 5, f"{accuracy}", anchor="end"),
        ]
    for share in (most, *shares):
        x, y = at(share, 0)
        anchor = "end" if share == least else "middle"
        parts.append(text(x, y + 22, "dense" if share == most else f"{share:g} of the MACs", anchor=anchor))
    parts.append(text(LEFT, HEIGHT - 8, "ResNet-20 on CIFAR-10, top-1 in %, no labels and no training", anchor="start"))
    for start, accuracies in rows.items():
        name, colour, lift = LINES[start]
        points = [at(most, dense), *map(at, shares, accuracies)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='3'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'/>" for x, y in points]
        x, y = points[2]
        parts.append(text(x + 12, y + lift, f"{name} {accuracies[1]:g}", INK, "start", 15))
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'>"
    return "\n".join([head, *parts, "</svg>\n"])


def main() -> None:
    """Write the picture beside this file."""
    page = (HERE.parent / "results.md").read_text(encoding="utf-8")
    (HERE / "results.svg").write_text(picture(page), encoding="utf-8")


if __name__ == "__main__":
    main()

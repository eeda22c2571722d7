"""Tables of plain rows, as text and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Columns of equal width, two spaces apart.

    Args:
        titles: of the columns.
        rows: cells as text.
        right: columns that are aligned to the right.

    Example:
        >>> print(text_table(["layer", "rank"], [["fc", "8"], ["conv1", "16"]], right=[1]))
        layer  rank
        fc        8
        conv1    16
    """
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return "\n".join(map(line, [titles, *rows]))


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """The same as HTML, every cell escaped.

    Example:
        >>> html_table(["a"], [["<b>"]])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        sides = [' style="text-align: right"' if column in right else "" for column in range(len(titles))]
        inner = "".join(f"<{tag}{side}>{escape(cell)}</{tag}>" for side, cell in zip(sides, row, strict=True))
        return f"<tr>{inner}</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f"<table><thead>{cells('th', titles)}</thead><tbody>{body}</tbody></table>"

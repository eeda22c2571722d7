"""Pieces of a page: everything that comes from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, what it is sorted by, and its class in the style sheet."""

    text: str
    value: float | str | None = None
    kind: str = ""

    @classmethod
    def number(cls, value: float | None, form: str = "{:,}", kind: str = "") -> Cell:
        """A number; an empty cell for None."""
        if value is None:
            return cls("", "", "number")
        return cls(form.format(value), value, f"number {kind}".strip())


def text(tag: str, content: str, kind: str = "") -> str:
    """An element that holds text.

    Example:
        >>> text("p", "<b> & co", "quiet")
        '<p class="quiet">&lt;b&gt; &amp; co</p>'
    """
    return f"<{tag}{_kind(kind)}>{escape(content)}</{tag}>"


def listed(items: Iterable[str], kind: str = "findings") -> str:
    """A list of texts."""
    return f"<ul{_kind(kind)}>" + "".join(text("li", item) for item in items) + "</ul>"


def table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[Cell]], *, sorts: bool = True) -> str:
    """A table whose rows have the first cell as their header; it scrolls by itself where the page is narrow.

    Args:
        caption: says what the table holds.
        titles: of the columns.
        rows: cells; a column is one of numbers if the first row's cell is.
        sorts: whether the headers sort the rows.
    """
    heads = []
    for column, title in enumerate(titles):
        kind = "number" if rows and rows[0][column].kind.startswith("number") else ""
        inner = f'<button type="button">{escape(title)}</button>' if sorts and title else escape(title)
        heads.append(f'<th scope="col"{_kind(kind)}>{inner}</th>')
    lines = []
    for first, *rest in rows:
        cells = [_cell("th", first, ' scope="row"'), *(_cell("td", each) for each in rest)]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    marked = " data-sorts" if sorts else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}">'
        f"<table{marked}><caption>{escape(caption)}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(drawing: str, told: str, kind: str = "", caption: str | None = None) -> str:
    """A drawing, what it shows for those who do not see it, and the same as its caption unless there is another."""
    return (
        f'<figure{_kind(kind)}><div role="img" aria-label="{escape(told, quote=True)}">{drawing}</div>'
        f"<figcaption>{escape(told if caption is None else caption)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    """A section with its heading, which a link can name; nothing if all parts are empty."""
    inner = "".join(parts)
    return f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{inner}</section>' if inner else ""


def anchor(title: str) -> str:
    """The id of a section.

    Example:
        >>> anchor("What got worse")
        'what-got-worse'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _cell(tag: str, cell: Cell, more: str = "") -> str:
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value), quote=True)}"'
    return f"<{tag}{more}{_kind(cell.kind)}{value}>{escape(cell.text)}</{tag}>"


def _kind(kind: str) -> str:
    return f' class="{escape(kind, quote=True)}"' if kind else ""

"""Tables of plain rows."""

from __future__ import annotations

from rankwise.files.tables import html_table, text_table


def test_columns_are_aligned() -> None:
    table = text_table(["layer", "rank"], [["conv1", "7"], ["a", "128"]], right=[1])
    assert table.splitlines() == ["layer  rank", "conv1     7", "a       128"]
    assert text_table(["a"], []) == "a"


def test_html_is_escaped_and_aligned() -> None:
    table = html_table(["a", "b"], [["<x>", "1"]], right=[1])
    assert "&lt;x&gt;" in table
    assert table.count("text-align: right") == 2

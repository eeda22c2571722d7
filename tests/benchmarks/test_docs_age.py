"""Tables of the documentation say which command made them, and at which commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import docs_age
from benchmarks.docs_age import Table, fault, pages, tables

TABLE = "| what | ms | share |\n|---|---|---|\n| one | 1.5 | 0.3 |\n| **two** | **91.7 (94.2)** | 12 % |\n"


def test_every_table_of_figures_says_where_it_is_from() -> None:
    found = [table for page in pages() for table in tables(page)]
    assert len(found) > 30
    assert [(table.where, wrong) for table in found if (wrong := fault(table))] == []


@pytest.mark.parametrize(
    "text, expected",
    [
        (TABLE, Table(where="page.md:3")),
        (
            f"{TABLE}\nFigures: `python -m benchmarks.cost --threads 1` at `0be32a6`.\n",
            Table(where="page.md:3", module="benchmarks.cost", command="benchmarks.cost --threads 1", commit="0be32a6"),
        ),
        ("| code | meaning |\n|---|---|\n| 0 | done |\n| 1 | an error |\n", None),  # numbers that nobody measured
    ],
)
def test_tables_and_their_lines(text: str, expected: Table | None, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"# A page\n\n{text}")
    assert list(tables(tmp_path / "page.md")) == ([] if expected is None else [expected])


def test_a_table_without_a_command_or_with_none_that_exists_is_a_fault() -> None:
    assert "no line below" in str(fault(Table(where="page.md:1")))
    assert fault(Table(where="page.md:1", module="benchmarks.nothing")) == "there is no benchmarks.nothing"


def test_ages_are_counted_in_commits_of_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_age, "ROOT", tmp_path)
    docs_age._git("init", "-q")

    def commit(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + "line\n")
        docs_age._git("add", "-A")
        docs_age._git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", name)
        return docs_age._git("rev-parse", "HEAD").strip()

    first = commit("src/rankwise/linalg/a.py")
    table = Table(where="page.md:1", module="benchmarks.cost", command="benchmarks.cost", commit=first)
    assert docs_age.age(table)["newer"] == 0
    for name in ("docs/page.md", "src/rankwise/cli/b.py"):  # neither is measured
        commit(name)
    assert docs_age.age(table)["newer"] == 0
    for name in ("benchmarks/cost.py", "src/rankwise/linalg/a.py"):
        commit(name)
    assert (docs_age.age(table)["newer"], docs_age.age(table)["lines"]) == (2, 2)
    with pytest.raises(ValueError):
        docs_age.age(Table(where="page.md:1", module="benchmarks.cost", commit="0000000"))

"""Questions read from lines of JSON, and lines that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.inputs.questions import read_questions


def test_answers_are_places_or_choices(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(
        '{"context": "a", "choices": ["b", "c"], "answer": 1}\n\n{"context": "", "choices": ["x", "y"], "answer": "x"}'
    )
    first, second = read_questions(path)
    assert (first.context, first.choices, first.answer) == ("a", ("b", "c"), 1)
    assert second.answer == 0


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 holds no question"),
        ('{"context": "a", "choices": "bc", "answer": 0}', "line 1 holds no question"),
        ('{"context": "a", "choices": ["b", "c"], "answer": "d"}', "the answer 'd' is neither"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "the answer True is neither"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "line 1: the answer is 2"),
        ("", "the file is empty"),
    ],
)
def test_lines_that_hold_none(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=words):
        read_questions(path)

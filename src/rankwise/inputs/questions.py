"""Questions with several answers, from a file of lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluate import Question

FORM = '{"context": "The sky is", "choices": ["blue", "green"], "answer": 0}'


def read_questions(path: Path) -> list[Question]:
    """The questions of a `.jsonl` file, one object a line: `context`, `choices`, and `answer`, a place or a choice.

    Raises:
        ValueError: naming the line, for a file that is missing, empty or of another form.
    """
    if not path.is_file():
        raise ValueError(f"--choices {path}: there is no such file; its lines are {FORM}")
    questions = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                questions.append(_question(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not questions:
        raise ValueError(f"--choices {path}: the file is empty; its lines are {FORM}")
    return questions


def _question(line: str, where: str) -> Question:
    from ..evaluate import Question

    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}; write {FORM}") from error
    value = value if isinstance(value, dict) else {}
    context, choices, answer = value.get("context"), value.get("choices"), value.get("answer")
    texts = isinstance(choices, list) and all(isinstance(each, str) for each in choices)
    if not isinstance(context, str) or not isinstance(choices, list) or not texts:
        raise ValueError(f"{where} holds no question; write {FORM}")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise ValueError(f"{where}: the answer {answer!r} is neither a place nor one of the choices")
    try:
        return Question(context=context, choices=tuple(choices), answer=answer)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

"""Options of judging language models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .base import option

if TYPE_CHECKING:
    from ...figures.language import LanguageFigures


def language(spec: str, help: str) -> Any:
    """An option in the panel of language models."""
    return option("Language models (hf:)", spec, help, shown=False)


@dataclass(frozen=True, kw_only=True)
class LanguageJudged:
    """What is measured of language models and of embeddings of text."""

    context: Annotated[
        int | None,
        language(
            "--context N",
            "Perplexity by sliding windows of N tokens over the text DATA, with the interval of its ratio.",
        ),
    ] = None
    stride: Annotated[
        int | None, language("--stride N", "Tokens by which each window moves on; by default half of a window.")
    ] = None
    start_token: Annotated[
        bool, language("--start-token", "Put the tokenizer's start token before each window and each question.")
    ] = False
    choices: Annotated[
        Path | None,
        language(
            "--choices FILE.jsonl",
            "Multiple choice by likelihood: lines with context, choices and answer; also by likelihood per byte.",
        ),
    ] = None
    neighbours: Annotated[
        bool,
        language("--neighbours", "Beside the dense network: cosine of the rows' embeddings, nearest neighbours kept."),
    ] = False
    generate: Annotated[
        int | None,
        language(
            "--generate N",
            "Tokens per second while reading a row of DATA and writing N tokens after it, for one row and for up to 8 "
            "together, and bytes of the cache of keys and values.",
        ),
    ] = None

    def judged(self) -> LanguageFigures:
        """These options as the library takes them."""
        from ...figures.language import LanguageFigures

        return LanguageFigures(**vars(self))

"""Multiple choice: which of several continuations a language model finds the most likely.

Letters: T tokens of a context and a choice, Q questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..running.calling import call
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb
from .bootstrap import Interval, mean_interval
from .next_token import next_token_nats

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its choices.

    Attributes:
        context: what comes before each choice.
        choices: continuations, at least two; a space is put between them and the context.
        answer: place of the right one.

    Raises:
        ValueError: for fewer than two choices, an empty one, or an answer that is none of them.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise ValueError(f"a question has {len(self.choices)} choices; at least two are needed")
        if not all(each.strip() for each in self.choices):
            raise ValueError("a choice is empty; each needs at least one character")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"the answer is {self.answer}; it must be from 0 to {len(self.choices) - 1}")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network chose.

    Attributes:
        right_Q: 1 where the choice with the largest likelihood is the answer, else 0.
        right_by_length_Q: the same for the likelihood per byte of the choice.
    """

    right_Q: Tensor
    right_by_length_Q: Tensor

    @property
    def accuracy(self) -> Interval:
        """Right answers in per cent."""
        return _share(self.right_Q)

    @property
    def accuracy_by_length(self) -> Interval:
        """Right answers in per cent, by the likelihood per byte."""
        return _share(self.right_by_length_Q)


@verb
def multiple_choice(
    model: nn.Module, questions: Iterable[Question], encode: Encode, *, most: int | None = None
) -> Answers:
    """`argmax over choices of sum log p(choice | context)`, and the same divided by the choice's length in bytes.

    The tokens of a choice are those of `context + " " + choice` after the tokens of the context. Spaces at the end of
    the context belong to the choice, as a tokenizer joins a space to the word after it.

    Args:
        model: returns an output with `logits`, samples x positions x vocabulary.
        questions: with their answers.
        encode: tokens of a text, such as `lambda text: tokenizer(text)["input_ids"]`.
        most: tokens that the network takes; of longer contexts the beginning is left out. None for any number.

    Raises:
        ValueError: naming the question without a token before a choice, with a choice of no token of its own or of
            too many, or if there is no question.

    Source: Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv 2005.14165 (likelihoods of choices,
    normalised by length).
    """
    model = unwrap(model)
    raw, by_length = [], []
    with pristine(model):
        for number, question in enumerate(questions):
            nats = [_nats(model, question.context, each, encode, most, number) for each in question.choices]
            shares = [own / len(each.encode()) for own, each in zip(nats, question.choices, strict=True)]
            raw.append(float(nats.index(min(nats)) == question.answer))
            by_length.append(float(shares.index(min(shares)) == question.answer))
    if not raw:
        raise ValueError("there are no questions")
    return Answers(right_Q=torch.tensor(raw), right_by_length_Q=torch.tensor(by_length))


def _nats(model: nn.Module, context: str, choice: str, encode: Encode, most: int | None, number: int) -> float:
    """`-sum log p` of the tokens of a choice."""
    context = context.rstrip()
    before, whole = list(encode(context)), list(encode(f"{context} {choice.strip()}"))
    # A tokenizer may join the last word of the context with the choice: what both texts share is the context.
    shared = next((place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    own = len(whole) - min(shared, len(whole))
    if not shared or not own:
        what = "no token comes before the choice" if not shared else "the choice has no token of its own"
        raise ValueError(f"question {number}: {what} {choice!r}; give it a context, or another choice")
    if most is not None and own >= most:
        raise ValueError(f"question {number}: the choice {choice!r} has {own} tokens, the network takes {most}")
    tokens_1T = torch.tensor([whole if most is None else whole[-most:]])
    logits = call(model, {"input_ids": tokens_1T}, index=number).logits
    return float(next_token_nats(logits, tokens_1T)[0, -own:].double().sum())


def _share(right_Q: Tensor) -> Interval:
    """Per cent of right answers, with its interval; without one for a single question."""
    if len(right_Q) < 2:
        value = 100 * float(right_Q.mean())
        return Interval(value=value, low=0.0, high=100.0)
    return mean_interval(100 * right_Q, torch.ones_like(right_Q))

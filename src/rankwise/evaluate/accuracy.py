"""How often a classifier is right, and how often two classifiers say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..batches import call, pristine
from ..calling import scores_in
from ..guards import unwrap


def accuracy(model: nn.Module, batches: Iterable[Any], k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy of a classifier.

    Args:
        model: gives scores with the classes in the last dimension: a tensor, or an output with `logits`.
        batches: pairs (inputs, labels); labels are class numbers, one for each row of scores.
        k: a prediction counts when the label is among the k best scores. With fewer than k classes it always is.

    Returns:
        Percentages: {"top1": 91.2, "top5": 99.5}.

    Raises:
        ValueError: naming the batch that is no pair, has other labels than scores, or scores that are not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> accuracy(model, [(torch.eye(4), torch.tensor([0, 1, 2, 0]))], k=(1,))
        {'top1': 75.0}
    """
    if not k or any(each < 1 for each in k):
        raise ValueError(f"k is {tuple(k)}; it must be positive numbers, such as (1, 5)")
    model = unwrap(model)
    hits, total = dict.fromkeys(k, 0), 0
    with pristine(model):
        for index, batch in enumerate(batches):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
                raise ValueError(
                    f"batch {index} is no pair (inputs, labels); accuracy needs labels, agreement does not"
                )
            inputs, labels = batch
            scores = scores_of(model, inputs, index)
            labels = labels.to(scores.device)
            _check_labels(labels, scores, index)
            best = scores.topk(min(max(k), scores.shape[-1]), dim=-1).indices == labels[..., None]
            for each in k:
                hits[each] += int(best[..., :each].any(-1).sum())
            total += labels.numel()
    return {f"top{each}": _percentage(hits[each], total) for each in k}


def agreement(a: nn.Module, b: nn.Module, batches: Iterable[Any]) -> float:
    """How often two classifiers prefer the same class.

    Args:
        a: a classifier, as for `accuracy`.
        b: another one, for the same inputs.
        batches: inputs, no labels.

    Returns:
        A percentage.

    Raises:
        ValueError: naming the batch whose scores are not finite or differ in shape.

    Example:
        >>> import torch
        >>> same = torch.nn.Linear(4, 3)
        >>> agreement(same, same, [torch.randn(8, 4)])
        100.0
    """
    a, b = unwrap(a), unwrap(b)
    same, total = 0, 0
    with pristine(a), pristine(b):
        for index, batch in enumerate(batches):
            ours, theirs = scores_of(a, batch, index), scores_of(b, batch, index)
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"batch {index}: one model gives scores of shape {list(ours.shape)}, the other "
                    f"{list(theirs.shape)}; they must have the same classes"
                )
            same += int((ours.argmax(-1) == theirs.argmax(-1).to(ours.device)).sum())
            total += ours[..., 0].numel()
    return _percentage(same, total)


def scores_of(model: nn.Module, inputs: Any, index: int) -> Tensor:
    """A classifier's scores for one batch, classes last; ValueError naming the batch where it gives none."""
    scores = scores_in(call(model, inputs, index=index))
    if not isinstance(scores, Tensor) or scores.dim() < 2:
        raise ValueError(
            f"batch {index}: {type(model).__name__} gave {_described(scores)}; "
            f"scores of shape [samples, classes], or an output with logits, are needed"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(f"batch {index}: {type(model).__name__} gave scores that are not finite; check its weights")
    return scores


def _check_labels(labels: Tensor, scores: Tensor, index: int) -> None:
    if labels.shape != scores.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"batch {index}: labels are {_described(labels)}, scores {list(scores.shape)}; "
            f"one class number for each of {list(scores.shape[:-1])} is needed"
        )
    classes = scores.shape[-1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"batch {index}: labels run from {int(labels.min())} to {int(labels.max())}, "
            f"the model has classes 0 to {classes - 1}"
        )


def _described(value: object) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _percentage(part: int, total: int) -> float:
    if total == 0:
        raise ValueError("there are no samples: the batches are empty, or a generator that was already used up")
    return 100 * part / total

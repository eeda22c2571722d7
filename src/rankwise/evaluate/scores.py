"""Accuracy of a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..running.batches import inputs_to_blame, made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.outputs import Outputs, described, fits, ignored
from ..running.pristine import pristine
from ..running.verbs import verb
from .tallies import NO_SAMPLES


@verb
def accuracy(
    model: nn.Module,
    batches: Iterable[Any],
    k: Sequence[int] = (1, 5),
    *,
    classes_dim: int | None = None,
    outputs: Outputs | None = None,
) -> dict[str, float]:
    """Top-k accuracy of a classifier.

    Args:
        model: returns scores of classes, in the dimension that the labels tell (a tensor, or an output with `logits`);
            one score for yes, with labels 0 and 1; or class numbers.
        batches: pairs (inputs, labels); labels are class numbers, one per sample, pixel or token. Labels of -100, and
            of 255 in maps of labels, are ignored.
        k: a prediction counts if the label is among the k best scores. With fewer than k classes it always is.
        classes_dim: dimension of the classes, if the labels do not tell it.
        outputs: what the outputs are; by default the first batch tells.

    Returns:
        Percentages: {"top1": 91.2, "top5": 99.5}; of pixels or tokens if each has a label.

    Raises:
        ValueError: naming the batch that is not a pair, has labels that do not fit, or scores that are not finite.

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
        for index, batch in enumerate(made(batches)):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
                raise ValueError(
                    f"batch {index} is not a pair (inputs, labels); accuracy needs labels, agreement does not"
                )
            inputs, labels = batch
            if outputs is None:
                outputs = Outputs.of(model, inputs, labels, classes_dim=classes_dim, scores=True)
            scores = outputs.scores(call(model, inputs, index=index))
            if not bool(scores.isfinite().all()):
                raise ValueError(
                    f"batch {index}: {type(model).__name__} gave scores that are not finite; check its weights"
                    f"{inputs_to_blame(inputs)}"
                )
            best, labels = _best(scores, labels.to(scores.device), outputs, max(k), index)
            for each in k:
                hits[each] += int((best[..., :each] == labels[..., None]).any(-1).sum())
            total += len(labels)
    if not total:
        raise ValueError(NO_SAMPLES)
    return {f"top{each}": 100 * hits[each] / total for each in k}


def _best(scores: Tensor, labels: Tensor, outputs: Outputs, k: int, index: int) -> tuple[Tensor, Tensor]:
    """The best answers of all labelled entries, and their labels: E x k and E."""
    shape = scores.movedim(-1, outputs.dim).shape if outputs.kind == "scores" else scores.shape
    rows = list(scores.shape[:-1] if outputs.has_scores else scores.shape)
    one_each = fits(labels, shape, outputs.dim) if outputs.kind == "scores" else labels.numel() == math.prod(rows)
    if labels.is_floating_point() or not one_each:
        raise ValueError(
            f"batch {index}: labels are {described(labels)}, scores {list(shape)}; give one class number for each of "
            f"{rows}"
        )
    labels = labels.reshape(rows)
    counted = ~ignored(labels)
    best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices if outputs.has_scores else scores[..., None]
    best, labels = best[counted], labels[counted]
    last = outputs.classes - 1
    if outputs.has_scores and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise ValueError(
            f"batch {index}: labels run from {int(labels.min())} to {int(labels.max())}, but the model has classes 0 "
            f"to {last}"
        )
    return best, labels

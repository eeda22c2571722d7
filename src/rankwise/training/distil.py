"""A loss from the dense network's own answers, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..running.calling import call
from ..running.guards import unwrap
from ..running.outputs import Outputs, described, ignored, leaves_of
from ..running.pristine import evaluating, rows_kept
from .modes import recorded, relative_error


class Distillation:
    """Distance of a network's answers from the dense network's.

    With z the outputs of the network, d those of the dense one, and T = temperature:

        T^2 sum_k p_k log(p_k / q_k),    p = softmax(d / T), q = softmax(z / T)        scores of classes
        ||z - d||^2 / ||d||^2                                                         otherwise

    mean over samples, pixels or tokens, and over several outputs; plus `feature_weight` times the mean relative squared
    error at `features`, plus `label_weight` times the cross entropy of labels, if they are given. The dense network
    runs in eval mode without gradients and is not changed.

    Args:
        dense: the network to follow.
        temperature: softens the answers; above 0.
        logits: whether outputs are scores of classes; by default what `Outputs` decides for the first batch.
        classes_dim: the dimension of the classes, if it cannot be inferred.
        features: qualified names of modules whose outputs shall agree as well; these need `of`.
        feature_weight: weight of their error.
        label_weight: weight of the labels' cross entropy.

    Raises:
        ValueError: for numbers out of range or unknown features.

    Example:
        >>> dense, small = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distil = Distillation(dense)
        >>> inputs = torch.randn(8, 4)
        >>> distil(inputs, small(inputs)).backward()

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; features:
    Romero et al., "FitNets: Hints for Thin Deep Nets", 2014, arXiv 1412.6550.
    """

    def __init__(
        self,
        dense: nn.Module,
        *,
        temperature: float = 2.0,
        logits: bool | None = None,
        classes_dim: int | None = None,
        features: Sequence[str] = (),
        feature_weight: float = 1.0,
        label_weight: float = 0.5,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be above 0, such as 2")
        for name, weight in (("feature_weight", feature_weight), ("label_weight", label_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} is {weight}; it must be 0 or more")
        self.dense = unwrap(dense)
        self.temperature, self.logits, self.classes_dim = temperature, logits, classes_dim
        self._outputs: Outputs | None = None
        self.features, self.feature_weight, self.label_weight = tuple(features), feature_weight, label_weight
        with recorded(self.dense, self.features):  # raises for unknown names
            pass

    def __call__(self, inputs: Any, outputs: Any, labels: Tensor | None = None) -> Tensor:
        """The loss of a network's outputs.

        Args:
            inputs: the batch.
            outputs: what the network returned for it: a tensor, or an output with `logits`.
            labels: class numbers, one for each row of scores.

        Raises:
            ValueError: if the dense network's output has another shape, or there are features.
        """
        if self.features:
            raise ValueError("features are read inside the network; use distil.of(small, inputs) instead")
        return self._answers(inputs, self._dense(inputs), outputs, labels)

    def of(self, small: nn.Module, inputs: Any, labels: Tensor | None = None) -> Tensor:
        """Run the network on a batch and give the loss, features included."""
        if not self.features:
            return self(inputs, call(small, inputs), labels)
        with recorded(self.dense, self.features) as wanted:
            answers = self._dense(inputs)
        with recorded(small, self.features) as got:
            outputs = call(small, inputs)
        errors = [
            relative_error(ours, theirs)
            for name in self.features
            for ours, theirs in zip(got[name], wanted[name], strict=True)
        ]
        return self._answers(inputs, answers, outputs, labels) + self.feature_weight * torch.stack(errors).mean()

    def _dense(self, inputs: Any) -> Any:
        with torch.no_grad(), evaluating(self.dense), rows_kept(self.dense):
            return call(self.dense, inputs)

    def outputs(self, inputs: Any, labels: Tensor | None = None) -> Outputs:
        """What the dense network's outputs are, decided once; a ValueError if they cannot be the scores they should."""
        if self._outputs is None:
            if self.logits is False:
                self._outputs = Outputs(kind="values", why="you said so")
            else:
                scores = self.logits is True
                self._outputs = Outputs.of(self.dense, inputs, labels, classes_dim=self.classes_dim, scores=scores)
        return self._outputs

    def _answers(self, inputs: Any, answers: Any, outputs: Any, labels: Tensor | None) -> Tensor:
        kind = self.outputs(inputs, labels)
        if kind.has_scores:
            scores, wanted = _alike(kind.logits(outputs), kind.logits(answers))
            loss = self._divergence(scores, wanted)
            if labels is not None and self.label_weight:
                rows = labels.masked_fill(ignored(labels), -100).to(scores.device).flatten()
                loss = loss + self.label_weight * F.cross_entropy(scores.flatten(0, -2), rows)
            return loss
        if labels is not None and self.label_weight:
            raise ValueError(f"labels teach only scores of classes; the outputs are {kind} ({kind.why})")
        theirs = {name: leaf for name, leaf in leaves_of(answers) if leaf.is_floating_point()}
        ours = dict(leaves_of(outputs))
        if not theirs or not theirs.keys() <= ours.keys():
            raise ValueError(
                f"the dense network returned {described(answers)}, the small one {described(outputs)}; a network "
                "learns from one with the same outputs"
            )
        return torch.stack([relative_error(*_alike(ours[name], theirs[name])) for name in theirs]).mean()

    def _divergence(self, outputs: Tensor, answers: Tensor) -> Tensor:
        q, p = (F.log_softmax(each.flatten(0, -2) / self.temperature, -1) for each in (outputs, answers))
        return self.temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def _alike(outputs: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape, in float32 or better."""
    if outputs.shape != answers.shape:
        raise ValueError(
            f"the dense network gives outputs of shape {list(answers.shape)}, the small one {list(outputs.shape)}; "
            "a network learns from one with the same outputs"
        )
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs, answers.to(outputs)

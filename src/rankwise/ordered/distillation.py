"""Train a pretrained network so that all its nested profiles work: every step the whole and one of them.

Source: Zaccone, Laskaridis, Ciccone, Horvath, "FlexRank", 2026, arXiv 2602.02680, from a summary of it; the full pass
in every step and the plain mean of the two losses are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..network.sites import Sites
from ..plan import Plan
from ..statistics import Statistics
from ..training.distil import Distillation
from ..training.technique import Step, Technique
from .extraction import settle_
from .layer import order_, ordered_layers, using


class NestedDistillation:
    """`1/2 (KD(f(x)) + KD(f(x; profile k)))` with KD the distance from the teacher's answers, k drawn in each call.

    Args:
        model: with ordered layers.
        teacher: answers; most often the network before `order_`.
        profiles: ranks by layer, from `nested_profiles`.
        **distil: temperature, logits, classes_dim and label_weight of `training.Distillation`.

    Raises:
        ValueError: if there are no profiles, or one names a layer that is not ordered.

    Example:
        >>> import copy, rankwise as rw
        >>> teacher, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(8, 16)
        >>> sites = rw.find(teacher, x)
        >>> model = order_(copy.deepcopy(teacher), sites)
        >>> loss = NestedDistillation(model, teacher, [{"0": 4}, {"0": 2}])
        >>> loss(x).backward()
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, profiles: Sequence[Mapping[str, int]], **distil: Any
    ) -> None:
        if not profiles:
            raise ValueError("there are no profiles to train; take nested_profiles")
        self.model, self.profiles = model, [dict(profile) for profile in profiles]
        for profile in self.profiles:
            with using(model, profile):  # raises for unknown names
                pass
        self.distil = Distillation(teacher, **distil)

    def __call__(self, inputs: Any, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; labels teach beside the teacher."""
        drawn = self.profiles[int(torch.randint(len(self.profiles), ()))]
        whole = self.distil.of(self.model, inputs, labels)
        with using(self.model, drawn):
            return (whole + self.distil.of(self.model, inputs, labels)) / 2


class FlexRank(Technique):
    """Nested distillation beside the loss of a `Loop`; the plan is that of one profile.

    The held-out samples judge that profile's network. The loss of the loop runs the whole network.

    Args:
        source: statistics of the network that is trained, or only its sites.
        teacher: a copy of the trained network, which stays as it is.
        profiles: from `nested_profiles`, the one to deliver last; layers that none names stay dense.
        weight: of the distance of the drawn profile from the teacher.
        **distil: as for `NestedDistillation`.
    """

    def __init__(
        self,
        source: Sites | Statistics,
        teacher: nn.Module,
        profiles: Sequence[Mapping[str, int]],
        *,
        weight: float = 1.0,
        **distil: Any,
    ) -> None:
        if not profiles or not 0 <= weight < float("inf"):
            raise ValueError(f"{len(profiles)} profiles and a weight of {weight}; give a profile, and 0 or more")
        self.source, self.profiles, self.weight = source, [dict(profile) for profile in profiles], weight
        self.distil = Distillation(teacher, **distil)
        self._drawn = self.profiles[-1]
        self._step: Step | None = None

    def begin(self, model: nn.Module) -> None:
        self._model = order_(model, self.source, sorted(set().union(*self.profiles)))

    def before_step(self, step: Step) -> None:
        self._step = step
        self._drawn = self.profiles[int(torch.randint(len(self.profiles), ()))]

    def penalty(self) -> Tensor:
        assert self._step is not None
        with using(self._model, self._drawn):
            return self.weight * self.distil.of(self._model, self._step.inputs)

    def after_step(self, step: Step) -> None:
        self._step = None

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        with using(model, self.profiles[-1]):
            yield

    def finish(self, model: nn.Module) -> Plan:
        sites = self.source.sites if isinstance(self.source, Statistics) else self.source
        known = ordered_layers(model)
        ranks = {name: rank for name, rank in self.profiles[-1].items() if name in known}
        return settle_(model, sites, "a nested profile", ranks)

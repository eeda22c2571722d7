"""Techniques by name, with settings after a colon, as `rankwise train --technique` reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import ordered, penalties, preset, projections, spectral, subspace
from ..formats import get_format
from ..names import made_of
from ..network.sites import Sites
from ..plan import Plan
from ..planning.choose import choose
from ..running.copying import copied
from ..statistics import collect
from ..training.technique import Technique


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a technique is made for.

    Attributes:
        model: the dense network.
        sites: its sites.
        only: names of the layers to train towards low rank.
        keep: budgets of the small network; None for none.
        batches: inputs of some training samples.
        loss: of outputs and labels.
        seed: random seed.
    """

    model: nn.Module
    sites: Sites
    only: Sequence[str]
    keep: Mapping[str, float] | None
    batches: Sequence[Any]
    loss: Callable[[Any, Tensor | None], Tensor]
    seed: int = 0

    def budget(self, name: str) -> Mapping[str, float]:
        """The budgets; a ValueError if there are none."""
        if not self.keep:
            raise ValueError(f"technique {name!r} needs a budget, such as keep={{'params': 0.3}}")
        return self.keep

    def plan(self, name: str, formats: Any) -> Plan:
        """Ranks of formats within the budgets, for the weights that there are."""
        dense = [site for site in self.sites if site not in self.only]
        among: dict[str, Any] = {"include": ["*", *self.only], "ignore": dense}
        return choose(self.model, self.sites, keep=self.budget(name), formats=formats, metric="weight", **among)


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A technique's name and settings."""

    name: ClassVar[str]
    summary: ClassVar[str]
    # Whether it finds ranks, and whether these meet the budgets; else a rule chooses them where budgets are given.
    plans: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    @abstractmethod
    def make(self, wanted: Wanted) -> Technique:
        """The technique."""


@dataclass(frozen=True, kw_only=True)
class MaestroRecipe(Recipe):
    """Settings of `ordered.Maestro`."""

    name: ClassVar[str] = "maestro"
    summary: ClassVar[str] = "ordered ranks, shrunk by a group lasso"

    strength: float = 1e-3
    threshold: float = 1e-3
    every: int = 50
    sampler: str = "pairs"

    def make(self, wanted: Wanted) -> Technique:
        return ordered.Maestro(
            wanted.sites, only=wanted.only, batches=wanted.batches, seed=wanted.seed, **_settings(self)
        )


@dataclass(frozen=True, kw_only=True)
class FlexRankRecipe(Recipe):
    """Settings of `ordered.FlexRank`: profiles from `most` of the parameters down to the budget."""

    name: ClassVar[str] = "flexrank"
    summary: ClassVar[str] = "a trained network and nested profiles of it, distilled together"
    budgeted: ClassVar[bool] = True

    profiles: int = 4
    most: float = 0.9
    weight: float = 1.0

    def make(self, wanted: Wanted) -> Technique:
        (unit, least), *others = wanted.budget(self.name).items()
        if others or not isinstance(least, float) or self.profiles < 1:
            raise ValueError("technique 'flexrank' needs one budget, a share of params or macs, and a profile at least")
        stats = collect(wanted.model, wanted.batches)
        step = (self.most - least) / max(self.profiles - 1, 1)
        keeps = [max(self.most - number * step, least) for number in range(self.profiles - 1)]
        profiles = ordered.nested_profiles(wanted.model, stats, [*keeps, least], unit=unit, only=wanted.only)
        return ordered.FlexRank(stats, copied(wanted.model), profiles, weight=self.weight)


@dataclass(frozen=True, kw_only=True)
class PenaltyRecipe(Recipe):
    """Settings of `penalties.Penalised`; a measure's own settings keep their defaults."""

    name: ClassVar[str] = "penalty"
    summary: ClassVar[str] = "a measure of singular values beside the loss"
    plans: ClassVar[bool] = False

    measure: str = "nuclear"
    weight: float = 1e-4
    every: int = 5
    input_metric: bool = False

    def make(self, wanted: Wanted) -> Technique:
        source = collect(wanted.model, wanted.batches) if self.input_metric else wanted.sites
        return penalties.Penalised(source, self.measure, self.weight, every=self.every, only=wanted.only)


@dataclass(frozen=True, kw_only=True)
class SoftThresholdRecipe(Recipe):
    """Settings of `penalties.SoftThreshold`."""

    name: ClassVar[str] = "soft_threshold"
    summary: ClassVar[str] = "proximal steps of the nuclear norm"

    weight: float = 1e-2
    every: int = 10

    def make(self, wanted: Wanted) -> Technique:
        return penalties.SoftThreshold(wanted.sites, only=wanted.only, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class RankPruningRecipe(Recipe):
    """Settings of `projections.RankPruning`."""

    name: ClassVar[str] = "rank_pruning"
    summary: ClassVar[str] = "weights cut to low rank every few steps"

    lost: float = 0.02
    every: int = 20

    def make(self, wanted: Wanted) -> Technique:
        return projections.RankPruning(wanted.sites, only=wanted.only, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class LearningCompressionRecipe(Recipe):
    """Settings of `projections.LearningCompression`."""

    name: ClassVar[str] = "learning_compression"
    summary: ClassVar[str] = "free weights drawn to low-rank ones whose ranks fit the budget"
    budgeted: ClassVar[bool] = True

    first: float = 1e-3
    last: float = 1e-1
    every: int = 20
    formats: str = "svd"

    def make(self, wanted: Wanted) -> Technique:
        settings = {**_settings(self), "formats": self.formats.split("+")}
        return projections.LearningCompression(wanted.sites, wanted.budget(self.name), only=wanted.only, **settings)


@dataclass(frozen=True, kw_only=True)
class AdmmRecipe(Recipe):
    """Settings of `projections.Admm`; the ranks are chosen for the weights at the start."""

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = "free weights drawn to a format at ranks that fit the budget"
    budgeted: ClassVar[bool] = True

    format: str = "svd"
    rho: float = 1e-2
    every: int = 20

    def make(self, wanted: Wanted) -> Technique:
        plan = wanted.plan(self.name, get_format(self.format).name)
        return projections.Admm(wanted.sites, plan, rho=self.rho, every=self.every, only=wanted.only)


@dataclass(frozen=True, kw_only=True)
class DynamicalRecipe(Recipe):
    """Settings of `spectral.Dynamical`."""

    name: ClassVar[str] = "dynamical"
    summary: ClassVar[str] = "bases that follow the gradient and a core that learns"

    lost: float = 0.1
    condition: float = 100.0
    bound: float = 0.0
    start: float = 0.5
    every: int = 50

    def make(self, wanted: Wanted) -> Technique:
        return spectral.Dynamical(wanted.sites, wanted.loss, only=wanted.only, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class SvdTrainingRecipe(Recipe):
    """Settings of `spectral.SparseSpectrum`."""

    name: ClassVar[str] = "svd_training"
    summary: ClassVar[str] = "singular vectors and sparse singular values"

    weight: float = 1e-2
    sparsity: str = "hoyer"
    orthogonal: float = 1.0
    lost: float = 0.02

    def make(self, wanted: Wanted) -> Technique:
        return spectral.SparseSpectrum(wanted.sites, only=wanted.only, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class WarmUpRecipe(Recipe):
    """Settings of `preset.WarmUp`: the second training is the one in factors, so give it most of the time."""

    name: ClassVar[str] = "warm_up"
    summary: ClassVar[str] = "full rank until the stable ranks settle, then factors"

    settled: float = 0.01
    ratio: float = 0.0

    def make(self, wanted: Wanted) -> Technique:
        return preset.WarmUp(wanted.sites, only=wanted.only, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class SubspaceRecipe(Recipe):
    """Settings of `subspace.InSubspace`."""

    name: ClassVar[str] = "subspace"
    summary: ClassVar[str] = "the first part of the training is recorded, the second one stays in its directions"
    plans: ClassVar[bool] = False

    dim: int = 40
    after: float = 0.5
    count: int = 81
    kind: str = "dldr"

    def make(self, wanted: Wanted) -> Technique:
        return subspace.InSubspace(**_settings(self))


RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        *(MaestroRecipe, FlexRankRecipe, PenaltyRecipe, SoftThresholdRecipe, RankPruningRecipe),
        *(LearningCompressionRecipe, AdmmRecipe, DynamicalRecipe, SvdTrainingRecipe, WarmUpRecipe, SubspaceRecipe),
    )
}


def get_recipe(technique: str | Recipe) -> Recipe:
    """A technique by its name, with settings after a colon: "maestro", "penalty:measure=effective_rank,weight=0.01".

    Raises:
        ValueError: for an unknown name (with near ones) or setting.

    Example:
        >>> get_recipe("rank_pruning:lost=0.1").lost
        0.1
    """
    if isinstance(technique, Recipe):
        return technique
    read: Recipe = made_of("technique", technique, RECIPES)
    return read


def _settings(recipe: Recipe) -> dict[str, Any]:
    return dict(vars(recipe))

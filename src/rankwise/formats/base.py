"""What a format is.

Letters: O outputs, I inputs, G groups, T outputs per group, D inputs per group (channels x taps), R rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..layers.kinds import FED, Role
from ..layers.low_rank import LowRank, Ranks
from ..linalg.metric import Metric
from ..names import SETTINGS, read_format, written_format
from ..network.site import Feeder, Site


class Cost(NamedTuple):
    """Parameters (bias included) and multiply-accumulates for the example input."""

    params: int
    macs: int


class Built(NamedTuple):
    """The chains of a site, before values are set.

    Attributes:
        chains: by the name of the layer that each replaces.
        whole: the chain to fill. It holds the values of all; only for joint layers is it not in the network itself.
    """

    chains: dict[str, LowRank]
    whole: LowRank


Rivals = Callable[[Cost], float]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A fitted factorisation of one site's weight.

    Attributes:
        format: name of the format.
        ranks: per group.
        tensors: the factors, groups first.
        weight: the dense weight that the factors multiply to, O x I/G [x kernel], float64.
        error: relative squared error `||(W - V) Sigma^(1/2)||^2 / ||W Sigma^(1/2)||^2` over all groups; for a tied
            embedding the mean over its two uses.
    """

    format: str
    ranks: Ranks
    tensors: dict[str, Tensor]
    weight: Tensor
    error: float

    def dense(self) -> Tensor:
        """The weight that the factors multiply to."""
        return self.weight


class Format(ABC):
    """One way to factorise a weight.

    Laws, tested for every format: the fit is exact at the largest ranks; the error never grows with a rank; a weight
    that has the form is recovered; the chain computes what a dense layer with `Factors.dense()` computes; `cost` is
    exactly what the built chain has.

    A format with settings is a frozen dataclass whose fields are its settings, each with a default. The name of such an
    object is written with the settings that differ: "stt:slices=4".
    """

    # Instances hold settings but no state: all chains of a format share one instance, and so do copies of them.
    name: str
    summary: ClassVar[str]
    use: ClassVar[str]
    # The sites that it can replace, by how their slots use the weight.
    roles: ClassVar[frozenset[Role]] = frozenset({Role.LAYER})
    # Whether curves come from quick fits at some ranks; the final fit is then better than its curve says.
    estimates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        own = type(self).name
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]

        def changed() -> dict[str, Any]:
            values = {key: getattr(self, key) for key in SETTINGS.get(own, defaults)}
            return {key: value for key, value in values.items() if value != defaults[key]}

        # What cannot be written is refused, and values are those that a reader of the name has.
        for key, value in read_format(written_format(own, changed()), known=(own,))[1].items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "name", written_format(own, changed()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Format:
        return self

    def __str__(self) -> str:
        return self.name

    def refuses(self, site: Site) -> str | None:
        """Why this format cannot take the site; None if it can."""
        if site.dense_because or site.role in self.roles:
            return site.dense_because or self.unfit(site)
        if Role.LAYER not in self.roles and site.role not in FED:
            between = "attention heads" if Role.HEADS in self.roles else "hidden units"
            return f"{self.name} takes layers around {between} as one site (joint=True), not single ones; use svd"
        if site.looks_up:
            return f"{self.name} has no layer that looks rows up; use svd"
        other = {Role.HIDDEN: "nystrom", Role.HEADS: "head_svd"}.get(site.role, "svd")
        return f"{self.name} cannot fit several layers as one; use {other}"

    @abstractmethod
    def unfit(self, site: Site) -> str | None:
        """Why it makes no sense for a layer of this kind and shape; None if it does."""

    @abstractmethod
    def limits(self, site: Site) -> Ranks:
        """Largest legal ranks, per group."""

    @abstractmethod
    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        """Exact parameters and MACs of the chain, built with or without a bias."""

    def saves(self, site: Site, ranks: Ranks) -> bool:
        """Whether these ranks cost less than the dense layer, in both parameters and MACs."""
        cost = self.cost(site, ranks, site.has_bias)
        return cost.macs < site.macs and cost.params < site.params

    @abstractmethod
    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        """Candidate ranks (multiples of `step`, and limits), each with its predicted relative squared error.

        Args:
            site: the site.
            weight: O x I/G [x kernel].
            metrics: one per group; for a tied embedding two, of the head's inputs and of the rows.
            step: ranks are multiples of it, where that makes sense.
            rivals: the least error of other formats at no greater cost; candidates clearly above it may be left out.
        """

    def predicted(self, site: Site, weight: Tensor, metric: Metric, G_TT: Tensor) -> dict[Ranks, float]:
        """`1/2 trace(G (W - V) Sigma (W - V)^T)` of fits to a matrix at all ranks; {} where no closed form gives it.

        It is the loss in nats that the error costs, to second order; the fits themselves do not see G.

        Args:
            site: the site.
            weight: O x I.
            metric: Sigma, of the inputs.
            G_TT: second moment of the loss's gradients at the outputs.
        """
        return {}

    @abstractmethod
    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        """Fit the weight (O x I/G [x kernel]) in the metric of each group.

        Raises:
            ValueError: if the ranks are not between 1 and `limits(site)`.
        """

    def nearly(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        """As `fit`; where a fit takes long it ends earlier, at an error that is some per cent larger."""
        return self.fit(site, weight, metrics, ranks)

    @abstractmethod
    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        """The chain for a dense layer, with its dtype and device, before values are set. Loading needs nothing else."""

    def build_site(
        self,
        role: Role,
        layers: Mapping[str, nn.Module],
        ranks: Ranks,
        bias: bool,
        feeders: Sequence[Feeder] = (),
    ) -> Built:
        """The chains for all layers of a site; a format with further roles overrides this.

        Args:
            role: of the site, one of `roles`.
            layers: of the site, by name; layers with one weight get the same chain.
            ranks, bias: as for `build`.
            feeders: what the site says of those of its layers that compute what the last one reads.
        """
        assert role in self.roles
        chain = self.build(next(iter(layers.values())), ranks, bias)
        return Built(dict.fromkeys(layers, chain), chain)

    @abstractmethod
    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        """Write factors and bias into a built chain."""

    @abstractmethod
    def chain_weight(self, chain: LowRank) -> Tensor:
        """The dense weight of a chain, O x I/G [x kernel], from its layers' parameters (differentiable)."""

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        """The chain at smaller ranks, from the leading columns of its factors: see `LowRank.at`.

        Raises:
            ValueError: if the leading columns of a fit are not a fit at the smaller rank.
        """
        raise ValueError(f"a chain of {self.name} cannot be cut: its factors are not nested; fit it at {ranks}")

    def output_factor(self, site: Site) -> tuple[str, int] | None:
        """Name and dimension of the one factor that holds all outputs of a group; None if no factor does.

        Mixing the outputs in that factor mixes the outputs of the weight, so the weight keeps its form.
        """
        return None

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        """The bias of a chain, held by its last layer (differentiable)."""
        bias: Tensor | None = getattr(chain[-1], "bias", None)
        return bias

    def cuts(self, site: Site) -> tuple[int | None, ...] | None:
        """For each rank, the unfolding of which it cuts singular values; None if ranks do not cut singular values.

        In the tuple None is the weight by outputs, O x D; a number n is the weight with its D inputs split into
        D/n x n, unfolded by D/n.
        """
        return None

    def orthonormal(self, chain: LowRank) -> tuple[bool, bool]:
        """Whether training may keep the first and the last layer of a chain orthonormal."""
        return False, False

    def indices(self, site: Site, ranks: Ranks) -> int:
        """Indices of 4 bytes that the chain holds beside its parameters."""
        return 0

    def named_ranks(self, site: Site, settings: Mapping[str, float]) -> Ranks:
        """Ranks from the named parameters that the literature on the format uses.

        Raises:
            ValueError: naming the site, if the format has no such parameters.
        """
        count = len(self.limits(site))
        raise ValueError(
            f"site {site.name!r}: {self.name} has no {', '.join(settings)}; give its ranks as {count} "
            f"number{'s' if count > 1 else ''}"
        )

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        """The ranks as a tuple of integers.

        Raises:
            ValueError: naming the site, the ranks and the legal ones.
        """
        limits = self.limits(site)
        ranks = tuple(int(rank) for rank in ranks)
        if len(ranks) != len(limits) or not all(1 <= rank <= limit for rank, limit in zip(ranks, limits, strict=False)):
            raise ValueError(
                f"site {site.name!r}: {self.name} cannot have ranks {ranks}; it needs {len(limits)} "
                f"number{'s' if len(limits) > 1 else ''} between 1 and {limits}"
            )
        return ranks


def relative(error: float, total: float) -> float:
    """Error over total; 0 for a weight whose outputs are all zero."""
    return error / total if total > 0 else 0.0

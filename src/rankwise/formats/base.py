"""What a format is.

Letters: O outputs, I inputs, G groups, T outputs per group, D inputs per group (channels x taps), R rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.kinds import Role
from ..layers.low_rank import LowRank, Ranks
from ..layers.modules import Stacked
from ..linalg.metric import Metric
from ..network.site import Site

# Memory format with the channels last, by the dimensions of a tensor that can have it.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Cost(NamedTuple):
    """Parameters (bias included) and multiply-accumulates for the example input."""

    params: int
    macs: int


class Built(NamedTuple):
    """The chains of a site, values not set.

    Attributes:
        chains: by the names of the layers that they replace.
        whole: the chain to fill, which holds the values of all; it stands in the network itself but for joint layers.
    """

    chains: dict[str, LowRank]
    whole: LowRank


Rivals = Callable[[Cost], float]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A fitted factorisation of one site's weight.

    Attributes:
        format: name of the format.
        ranks: per-group ranks.
        tensors: the factors, each with the groups first.
        weight: the dense weight they stand for, O x I/G [x kernel], float64.
        error: relative squared error `||(W - V) Sigma^(1/2)||^2 / ||W Sigma^(1/2)||^2` over all groups; of a tied
            embedding the mean of those of its two uses.
    """

    format: str
    ranks: Ranks
    tensors: dict[str, Tensor]
    weight: Tensor
    error: float

    def dense(self) -> Tensor:
        """The weight that the factors stand for."""
        return self.weight


class Format(ABC):
    """One way to factorise a weight.

    Laws, tested for all formats alike: exact at the largest ranks; the error never grows with a rank; a weight that has
    the form is recovered; the chain computes what a dense layer with `Factors.dense()` computes; `cost` counts what the
    built chain has, to the unit.
    """

    # Instances hold settings and no state, so that all chains of one share it, copies too.
    name: ClassVar[str]
    summary: ClassVar[str]
    use: ClassVar[str]
    # What sites it can take the place of, by how their slots use the weight.
    roles: ClassVar[frozenset[Role]] = frozenset({Role.LAYER})
    # Whether a curve comes from quick fits at some ranks, so that a fit is better than it says.
    estimates: ClassVar[bool] = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Format:
        return self

    def __str__(self) -> str:
        return self.name

    def refuses(self, site: Site) -> str | None:
        """Why this format makes no sense for the site; None where it does."""
        if site.dense_because or site.role in self.roles:
            return site.dense_because or self.unfit(site)
        if site.looks_up:
            return f"{self.name} has no layer that looks rows up; use svd"
        return f"{self.name} is no format for layers that are fitted as one; use svd"

    @abstractmethod
    def unfit(self, site: Site) -> str | None:
        """Why it makes no sense for a layer of that kind and shape."""

    @abstractmethod
    def limits(self, site: Site) -> Ranks:
        """Largest legal ranks, per group."""

    @abstractmethod
    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        """Exact parameters and MACs of the chain, built with or without a bias."""

    @abstractmethod
    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        """Candidate ranks (multiples of `step`, and limits) with the relative squared error predicted for each.

        Args:
            site: the layer.
            weight: its weight, O x I/G [x kernel].
            metrics: of each group; of a tied embedding that of its head's inputs and that of its rows.
            step: ranks are multiples of it, as far as that makes sense.
            rivals: the least error of other formats at no greater cost; what is clearly beaten may be left out.
        """

    @abstractmethod
    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        """Fit the weight (O x I/G [x kernel]) in the metric of each group.

        Raises:
            ValueError: if the ranks are not between 1 and `limits(site)`.
        """

    @abstractmethod
    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        """The chain for a dense layer, with its dtype and device, values not set. All that loading needs."""

    def build_site(self, role: Role, layers: Mapping[str, nn.Module], ranks: Ranks, bias: bool) -> Built:
        """The chains for the layers of a site, by their names; a format of further roles builds what these need.

        Args:
            role: of the site, one of `roles`.
            layers: all of it, by name; those with one weight get the same chain.
            ranks, bias: as for `build`.
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
        """The chain at smaller ranks, of the leading columns of its factors: see `LowRank.at`.

        Raises:
            ValueError: where the leading columns of a fit are no fit of fewer columns.
        """
        raise ValueError(f"a chain of {self.name} cannot be cut: its factors are not nested; fit it at {ranks}")

    def output_factor(self, site: Site) -> tuple[str, int] | None:
        """Name and dimension of the one factor that holds all outputs of a group; None where there is no such factor.

        A weight of the form stays one of the form if its outputs are mixed there.
        """
        return None

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        """The bias of a chain (differentiable): that of its last layer."""
        bias: Tensor | None = getattr(chain[-1], "bias", None)
        return bias

    def cuts(self, site: Site) -> tuple[int | None, ...] | None:
        """For each rank the unfolding whose singular values it cuts; None where ranks cut no singular values.

        None stands for the weight by outputs, O x D; a number n for the weight with its D inputs as D/n x n, by the
        first of these two.
        """
        return None

    def orthonormal(self, chain: LowRank) -> tuple[bool, bool]:
        """Whether the first and whether the last layer of a chain is one that training may keep orthonormal."""
        return False, False

    def indices(self, site: Site, ranks: Ranks) -> int:
        """Whole numbers of 4 bytes that the chain holds beside its parameters."""
        return 0

    def named_ranks(self, site: Site, settings: Mapping[str, float]) -> Ranks:
        """Ranks from the parameters that the literature of the format gives them by.

        Raises:
            ValueError: naming the site, where the format has none, or has others.
        """
        raise ValueError(
            f"site {site.name!r}: {self.name} has no {', '.join(settings)}; name {len(self.limits(site))} "
            f"rank{'s' if len(self.limits(site)) > 1 else ''} as numbers"
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


def grouped(site: Site, weight: Tensor) -> Tensor:
    """The weight as G x T x C x Q: groups, outputs and channels of a group, taps; float64."""
    kernel = weight.detach().double()
    taps = kernel[0, 0].numel()
    return kernel.reshape(site.groups, kernel.shape[0] // site.groups, kernel.shape[1], taps)


def ungrouped(site: Site, weight_GTCQ: Tensor) -> Tensor:
    """Inverse of `grouped`."""
    return weight_GTCQ.reshape(site.weight_shape)


def steps(limit: int, step: int, most: int | None = None) -> list[int]:
    """Multiples of `step` up to `limit`, and `limit`; thinned to about `most` values, spaced evenly in logarithm."""
    values = sorted({*range(step, limit + 1, step), limit})
    if most is None or len(values) <= most:
        return values
    targets = torch.logspace(0, 1, most).sub(1).div(9).mul(len(values) - 1).round().long().tolist()
    return sorted({values[index] for index in targets})


def relative(error: float, total: float) -> float:
    """Error over total, 0 for a weight whose outputs are all zero."""
    return error / total if total > 0 else 0.0


def same_tensor_options(layer: nn.Module) -> dict[str, Any]:
    """dtype and device for the layers of a chain."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return {"dtype": weight.dtype, "device": weight.device}


def match_layout(chain: LowRank, layer: nn.Module) -> LowRank:
    """Give the chain the dense layer's memory format and training flag, and the flags of weight and bias to its own."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    layout = CHANNELS_LAST.get(weight.dim())
    if layout is not None and weight.is_contiguous(memory_format=layout) and not weight.is_contiguous():
        chain.to(memory_format=layout)  # type: ignore[call-overload]
    chain.train(layer.training)
    bias = getattr(layer, "bias", None)
    trained = any(parameter.requires_grad for parameter in layer.parameters() if parameter is not bias)
    moved = bias.requires_grad if isinstance(bias, nn.Parameter) else trained
    for name, parameter in chain.named_parameters():
        parameter.requires_grad_(moved if name.rpartition(".")[2] == "bias" else trained)
    return chain


def set_bias(layer: nn.Module, bias: Tensor | None) -> None:
    """Copy a bias into the last layer of a chain; both or neither must be there."""
    if isinstance(layer, Stacked):
        sizes = [part.out_features for part in layer if isinstance(part, nn.Linear)]
        for part, values in zip(layer, [None] * len(layer) if bias is None else bias.split(sizes), strict=True):
            set_bias(part, values)
        return
    own = getattr(layer, "bias", None)
    if bias is None:
        assert own is None
        return
    assert isinstance(own, Tensor)
    own.copy_(bias)

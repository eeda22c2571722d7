"""Formats described by a tensor network; cost, layers, fit and curve follow from the description.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..linalg import multilinear, tucker2
from ..linalg.descent import Effort, Fitted
from ..linalg.equation import compose
from ..linalg.gauss_newton import free_numbers, is_small
from ..linalg.metric import Identity, Metric
from ..network.site import Site
from .base import Cost, Factors, Format, LowRank, Ranks, Rivals, relative
from .building import chain_of, same_tensor_options, set_bias
from .network import Network
from .race import Asked, Curves, Entry, run
from .shape import Shape
from .weights import grouped, ungrouped

# A fit holds a square matrix over the bond states of a factor: 2 GB at this number.
MOST_STATES = 16384
# In the weight metric a core is fitted first if it has at most this share of the weights.
CORE = 0.5


class Thoroughness(NamedTuple):
    """How long to fit.

    Attributes:
        first: of the core of a large problem, or of the whole kernel where no core is split off.
        large: the same where steps are not solved directly: each takes much longer there.
        polish: of the whole kernel from the fitted core; None to split off no core.
        races: whether random starts compete with those of the format.
    """

    first: Effort
    large: Effort
    polish: Effort | None
    races: bool


# In the metric of inputs a core first gains about one per cent, and takes as long again: curves go without.
THOROUGH = Thoroughness(Effort(120, 1e-5), Effort(60, 1e-4), Effort(12, 1e-4), True)
NEARLY = Thoroughness(Effort(60, 1e-4), Effort(30, 1e-3), Effort(6, 1e-3), True)  # errors are some per cent larger
QUICK = Thoroughness(Effort(8, 1e-2, 5, 256), Effort(8, 1e-2, 5, 256), None, False)
# Random starts have at most so many numbers together, but there are a few of them.
RACING, FEW = 6144, 2


class Target(NamedTuple):
    """A kernel T x D, its metric, and its energy there."""

    W_TD: Tensor
    metric: Metric
    energy: float


class Multilinear(Format):
    """`W = sum over the bonds of the product of the factors`, minimising `||(W - V) Sigma^(1/2)||_F`.

    A subclass says which network its ranks make, which ranks are legal, which ladder of ranks a curve tries, and where
    the fit starts.
    """

    estimates: ClassVar[bool] = True
    # A long fit has about a quick one's error to this power.
    power: ClassVar[float] = 1.04
    # Random starts of a thorough fit: few where the format's own start is near the optimum.
    random: ClassVar[int] = 2

    @abstractmethod
    def network(self, shape: Shape, ranks: Ranks) -> Network:
        """The tensor network of these ranks."""

    @abstractmethod
    def largest(self, shape: Shape) -> Ranks:
        """Largest legal ranks."""

    @abstractmethod
    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        """Families of balanced ranks, each from small to large, so that every form contains the one before it."""

    @abstractmethod
    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        """Factors of one group to start from, for a kernel with one dimension per mode; the best fit is taken."""

    def fits_at_once(self, network: Network, R: int, S: int) -> bool:
        """Whether fitting a core of R x S channels first does not pay; asked in the weight metric only."""
        return CORE * network.count(network.outputs) * network.count(network.channels) < R * S

    def limits(self, site: Site) -> Ranks:
        return self.largest(Shape.of_site(site))

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        network, macs = self.network(Shape.of_site(site), ranks), 0
        for number, step in enumerate(network.steps):  # a transposed convolution multiplies at its input positions
            positions = site.positions(*network.reached(number + (not site.is_transposed)))
            macs += positions * network.count("g" + step.letters + step.waiting)
        return Cost(network.params() + site.out_features * bias, macs)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        """See `Format.curve`: quick fits at some ranks of each family, and smooth curves in between."""
        return curves([Entry([self], site, weight, metrics, step, rivals)])[0][self.name]

    def states(self, site: Site, ranks: Ranks) -> int:
        """The largest number of bond states of a factor, the product over its bonds."""
        network = self.network(Shape.of_site(site), ranks)
        modes = set(network.outputs + network.channels + network.spatial)
        return max(network.count("".join(x for x in letters if x not in modes)) for letters in network.factors)

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        """See `Format.check`; also refuses fits that would not fit into memory."""
        ranks = super().check(site, ranks)
        if (states := self.states(site, ranks)) > MOST_STATES:
            raise ValueError(
                f"site {site.name!r}: {self.name} of ranks {ranks} has {states:,} bond states in a factor; a fit needs "
                f"a matrix of that many rows and columns, so {MOST_STATES:,} is the most; choose smaller ranks"
            )
        return ranks

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks, enough: float = 0.0) -> Factors:
        """See `Format.fit`; stops early at a relative squared error of `enough`."""
        return self._fit(site, weight, metrics, self.check(site, ranks), THOROUGH, enough)

    def nearly(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        """See `Format.nearly`."""
        return self._fit(site, weight, metrics, self.check(site, ranks), NEARLY)

    def _fit(
        self,
        site: Site,
        weight: Tensor,
        metrics: Sequence[Metric],
        ranks: Ranks,
        effort: Thoroughness,
        enough: float = 0.0,
    ) -> Factors:
        return self.fit_many(site, [(weight, metrics)], ranks, effort, enough)[0]

    def fit_many(
        self,
        site: Site,
        targets: Sequence[tuple[Tensor, Sequence[Metric]]],
        ranks: Ranks,
        effort: Thoroughness = THOROUGH,
        enough: float = 0.0,
    ) -> list[Factors]:
        """Fits of several weights of one shape at the same ranks, side by side: much quicker for small layers.

        Args:
            site: any of the sites; only its shape counts.
            targets: the weight and the metric of each group of every site.
            ranks: of all.
            effort: `THOROUGH` or `QUICK`.
            enough: stop at this relative squared error.
        """
        network = self.network(Shape.of_site(site), ranks)
        targets_G = [
            Target(W_TCQ.flatten(1), metric, metric.energy(W_TCQ.flatten(1)))
            for weight, metrics in targets
            for W_TCQ, metric in zip(grouped(site, weight), metrics, strict=True)
        ]
        fitted = self._fit_groups(network, targets_G, effort, enough)
        results, groups = [], network.sizes["g"]
        for place in range(0, len(fitted), groups):
            fits, total = fitted[place : place + groups], sum(t.energy for t in targets_G[place : place + groups])
            factors = [torch.stack(parts) for parts in zip(*(fit.factors for fit in fits), strict=True)]
            dense = ungrouped(site, network.kernel(factors))
            tensors = dict(zip(_names(network), factors, strict=True))
            error = relative(sum(fit.error for fit in fits), total)
            results.append(Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=error))
        return results

    def _fit_groups(
        self, network: Network, targets: Sequence[Target], effort: Thoroughness, enough: float
    ) -> list[Fitted]:
        """The best fit of each group; of its core first, where the core is smaller.

        The outer factors often span fewer directions than there are outputs and channels. A Tucker-2 fit finds these
        directions, the network is fitted to its small core, and a polish moves all factors of the whole kernel.
        """
        outer, in_weight = _outer(network), isinstance(targets[0].metric, Identity)
        at_once = effort.polish is None or is_small(network.equation, network.sizes, effort.first.direct)
        if outer is None or at_once or (in_weight and self.fits_at_once(network, *outer)):
            return self._best(network, targets, [enough * target.energy for target in targets], effort)
        R, S = outer
        sweeps = 1 if in_weight else None  # in the weight metric the first brings nearly all
        cores, tuckers, left = [], [], []
        for W_TD, metric, energy in targets:
            tucker = tucker2.fit(W_TD.reshape(len(W_TD), network.count(network.channels), -1), metric, R, S, sweeps)
            core_metric = metric.fold(tucker.B_CS, tucker.G_RSQ.shape[2])
            cores.append(Target(tucker.G_RSQ.flatten(1), core_metric, energy))
            tuckers.append(tucker)
            # The Tucker-2 error is orthogonal to what the core can change, so the two squared errors add up.
            left.append(max(enough * energy - tucker.error, 0.0))
        core_network = replace(network, sizes={**network.sizes, network.outputs: R, network.channels: S})
        problems = []
        for target, tucker, core in zip(targets, tuckers, self._best(core_network, cores, left, effort), strict=True):
            factors = list(core.factors)
            for place, letter, basis in ((0, network.channels, tucker.B_CS), (-1, network.outputs, tucker.A_TR)):
                letters = network.factors[place]
                expanded = letters.replace(letter, "Z")
                factors[place] = torch.einsum(f"{expanded},{letter}Z->{letters}", factors[place], basis)
            problems.append(multilinear.Problem(target.W_TD, target.metric, [factors], enough * target.energy))
        return multilinear.fits(problems, network.equation, effort.polish)

    def _best(
        self, network: Network, targets: Sequence[Target], enough: Sequence[float], effort: Thoroughness
    ) -> list[Fitted]:
        """The fit of each target from the best of its starts: those of the format, and random ones."""
        numbers = free_numbers(network.equation, network.sizes)
        count = max(min(self.random, RACING // numbers), FEW) if effort.races else 0
        problems = []
        for (W_TD, metric, _), least in zip(targets, enough, strict=True):
            X = W_TD.reshape(network.shape(network.equation.kernel))
            starts = [*self.starts(network, X), *(_random(network, X, seed) for seed in range(count))]
            problems.append(multilinear.Problem(W_TD, metric, starts, least))
        small = is_small(network.equation, network.sizes, effort.first.direct)
        return multilinear.fits(problems, network.equation, effort.first if small else effort.large)

    def output_factor(self, site: Site) -> tuple[str, int] | None:
        shape = Shape.of_site(site)
        network = self.network(shape, self.largest(shape))
        if len(network.outputs) > 1:
            return None
        named = zip(_names(network), network.factors, strict=True)
        ((name, letters),) = ((name, letters) for name, letters in named if network.outputs in letters)
        return name, 1 + letters.index(network.outputs)

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        network = self.network(Shape.of_layer(layer), ranks)
        layers = network.layers(layer, bias, same_tensor_options(layer))
        return chain_of(self, ranks, layers, layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        with torch.no_grad():
            self.network(Shape.of_layer(chain), chain.ranks).write(chain, list(factors.tensors.values()))
            set_bias(chain[-1], bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        shape = Shape.of_layer(chain)
        network = self.network(shape, chain.ranks)
        return network.kernel(network.read(chain)).reshape(-1, shape.channels, *shape.kernel)


def curves(entries: Sequence[Entry]) -> list[Curves]:
    """Curves of several formats at each of some sites, which run against each other: see `race`."""

    def fits(asked: Asked, some: Sequence[Entry]) -> list[list[float]]:
        format = asked.format
        assert isinstance(format, Multilinear)
        alike: dict[Shape, list[int]] = {}
        for number, entry in enumerate(some):
            alike.setdefault(Shape.of_site(entry.site), []).append(number)
        errors: list[list[float]] = [[] for _ in some]
        for numbers in alike.values():
            targets = [(some[number].weight, some[number].metrics) for number in numbers]
            for ranks in asked.ranks:
                found = format.fit_many(some[numbers[0]].site, targets, ranks, QUICK)
                for number, factors in zip(numbers, found, strict=True):
                    errors[number].append(factors.error)
        return errors

    return run(entries, fits)


def _random(network: Network, X: Tensor, seed: int) -> list[Tensor]:
    """Factors of independent normal numbers, that multiply to a kernel as large as `X`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [network.shape(letters) for letters in network.factors]
    factors = [torch.randn(shape, generator=generator, dtype=X.dtype).to(X.device) for shape in shapes]
    made = compose(network.equation, factors)
    scale = torch.linalg.vector_norm(X) / torch.linalg.vector_norm(made)
    return [factor * scale ** (1 / len(factors)) for factor in factors]


def _names(network: Network) -> list[str]:
    """Names of the factors: a number, and the letters with the groups first."""
    return [f"{number}_G{letters}" for number, letters in enumerate(network.factors)]


def _outer(network: Network) -> tuple[int, int] | None:
    """Directions that the factors at the outputs and channels span; None unless that is fewer than there are.

    None also where an end factor holds several modes, or other modes than its own.
    """
    ends = (network.factors[-1], network.outputs), (network.factors[0], network.channels)
    modes = set(network.outputs + network.channels + network.spatial)
    if any(len(mode) > 1 or set(letters) & modes != set(mode) for letters, mode in ends):
        return None
    R, S = (min(network.count(letters.replace(mode, "")), network.count(mode)) for letters, mode in ends)
    return (R, S) if network.count(network.outputs) > R or network.count(network.channels) > S else None

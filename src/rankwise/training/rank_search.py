"""Ranks and weights in turn: weights move towards a mixture of their own factorisations, the mixture towards data.

Letters: K candidates of a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..formats import get_format
from ..formats.weights import read, site_weight
from ..layers.kinds import output_first
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, Plan, dense_option
from ..planning.constraints import Constraints
from ..planning.planner import Planner
from ..planning.profile import profile
from ..planning.request import Request
from ..planning.units import Macs, Params
from ..ranks import Pick, Problem, Rule
from ..ranks.base import described
from ..ranks.budgeted import least
from ..ranks.solvers.fronts import front
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..statistics.moments import identity_metrics

ABSENT = -1e4  # logarithm of a weight that has vanished


class RankSearch:
    """`p_i = softmax(alpha_i)` over candidates of each site, `W^_i = sum_r p_i^(r) W_i^(r)` the mixture of their fits.

    Two optimisers take turns. One moves the weights on `penalty()`, which needs no data,

        sum_i ||W_i - W^_i||_F^2 * L_r,    L_r = mean_i (sum_r p_i^(r) cost_i^(r) / dense cost_i)^beta = share(),

    the other moves `parameters()`, the alphas, on a loss of the network with the mixtures as weights, times `share()`.
    A layer is linear in its weight, so such a network costs as much as the dense one. `refit()` renews the fits, and
    `refine()` goes on from a coarse grid to a finer one around the largest weights.

    Args:
        model: the network; its weights are the W.
        sites: its sites.
        candidates: number of options of each site, spread evenly over the best ones, dense included; at least 2.
        formats: formats to choose from.
        constraints: which sites take part.
        unit: the cost, "macs" or "params".
        beta: exponent of the cost.

    Raises:
        ValueError: for fewer than two candidates, an unknown unit, or if no site can be factorised.

    Example:
        >>> import torch, rankwise as rw
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> search = RankSearch(model, rw.find(model, torch.randn(1, 64)), formats=["svd"])
        >>> weights, alphas = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(search.parameters(), 0.1)
        >>> search.penalty().backward(); weights.step(); search.refit()
        >>> outputs = torch.func.functional_call(model, search.mixed(), (torch.randn(8, 64),))
        >>> (outputs.square().mean() * search.share()).backward(); alphas.step()
        >>> search.plan({"params": 0.5}).rule
        'rank_search'

    Source: Aghababaei-Harandi and Amini, "Unified Framework for Neural Network Compression via Decomposition and
    Optimal Rank Selection", 2024, arXiv 2409.03555 (RENE).
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        candidates: int = 6,
        formats: str | Sequence[str] = ("svd", "spatial_svd"),
        constraints: Constraints | None = None,
        unit: str = "macs",
        beta: float = 1.0,
    ) -> None:
        if candidates < 2:
            raise ValueError(f"candidates is {candidates}; at least 2 are needed, dense among them")
        counts = {each.name: each for each in (Macs, Params)}  # these do not depend on the rest of the network
        if unit not in counts:
            raise ValueError(f"unit {unit!r} is not one of {', '.join(counts)}")
        self.model, self.sites, self.beta = unwrap(model), sites, beta
        self.unit = counts[unit](self.model, sites)
        constraints = constraints or Constraints()
        curves = profile(self.model, sites, formats=formats, metric="weight", only=constraints.free(sites))
        held = dict(self.model.named_parameters(remove_duplicate=False))
        self.candidates = candidates
        self.options: dict[str, Curve] = {}
        # Of each site the options that no other beats, by rising cost, and the places of the candidates among them.
        self._paths: dict[str, Curve] = {}
        self._places: dict[str, list[int]] = {}
        for name, curve in curves.items():
            path = tuple(curve[at] for at in front(self.unit.costs(sites[name], curve), [o.error for o in curve]))
            if len(path) > 1 and path[-1].format == DENSE and f"{name}.weight" in held:
                self._paths[name], self._places[name] = path, _spread((0, len(path) - 1), candidates)
                self.options[name] = tuple(path[place] for place in self._places[name])
        if not self.options:
            raise ValueError("no site can be factorised with these formats and constraints; allow more of them")
        like = {name: held[f"{name}.weight"] for name in self.options}
        self.alphas = {
            name: torch.zeros(len(options), device=like[name].device, requires_grad=True)
            for name, options in self.options.items()
        }
        self.fits: dict[str, Tensor] = {}
        self.refit()

    def parameters(self) -> list[Tensor]:
        """The alphas, one tensor for each site that takes part."""
        return list(self.alphas.values())

    def weights(self, name: str) -> Tensor:
        """p over a site's candidates, K."""
        return self.alphas[name].softmax(0)

    def mixture(self, name: str) -> Tensor:
        """A site's `W^ = sum_r p^(r) W^(r)`, O x I/groups [x kernel]; differentiable in the alphas."""
        fits = self.fits[name]
        return torch.tensordot(self.weights(name).to(fits.dtype), fits, 1)

    def mixed(self) -> dict[str, Tensor]:
        """The mixtures by the names of the parameters that they replace, for `torch.func.functional_call`."""
        return {
            f"{name}.weight": output_first(site.kind, self.mixture(name), site.groups)
            for name, site in self.sites.items()
            if name in self.options
        }

    def share(self) -> Tensor:
        """L_r: mean over the sites of the expected share of the dense cost, to the power of beta."""
        shares = []
        for name, options in self.options.items():
            site = self.sites[name]
            costs_K = self.alphas[name].new_tensor(self.unit.costs(site, options))
            (dense,) = self.unit.costs(site, [dense_option(site)])
            shares.append(self.weights(name) @ (costs_K / dense))
        return torch.stack(shares).pow(self.beta).mean()

    def excess(self, keep: float) -> Tensor:
        """How far the expected cost of the whole network is above `keep` times the dense one's, as a share of that."""
        dense = self.unit.planned(())
        saved = []
        for name, options in self.options.items():
            site = self.sites[name]
            (own,) = self.unit.costs(site, [dense_option(site)])
            saved.append(own - self.weights(name) @ self.alphas[name].new_tensor(self.unit.costs(site, options)))
        return 1 - torch.stack(saved).sum() / dense - keep

    def distance(self, of: str = "weights") -> Tensor:
        """`sum_i ||W_i - W^_i||_F^2`, differentiable in the "weights" or in the "alphas"."""
        assert of in ("weights", "alphas")
        terms = []
        for name in self.options:
            W, mixture = read(self.model.get_submodule(name)), self.mixture(name)
            W, mixture = (W, mixture.detach()) if of == "weights" else (W.detach(), mixture)
            terms.append((W - mixture).square().sum())
        return torch.stack(terms).sum()

    def is_collapsed(self) -> bool:
        """Whether every site prefers its cheapest option of all: the share went to zero, and with it the whole loss."""
        best = {name: int(self.weights(name).argmax()) for name in self.options}
        return all(place == 0 == self._places[name][0] for name, place in best.items())

    def refine(self) -> bool:
        """Go on with a finer grid, from halfway below to halfway above the candidate with the largest weight.

        The alphas begin anew, on fits to the present weights.

        Returns:
            False if all candidates are neighbours already; then nothing changes.
        """
        if all(places[-1] - places[0] < len(places) for places in self._places.values()):
            return False
        for name, places in self._places.items():
            best = int(self.weights(name).argmax())
            low, high = places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)]
            span = math.ceil((low + places[best]) / 2), math.floor((places[best] + high) / 2)
            self._places[name] = _spread(span if span[0] < span[1] else (low, high), self.candidates)
            self.options[name] = tuple(self._paths[name][place] for place in self._places[name])
            like = self.alphas[name]
            self.alphas[name] = torch.zeros(len(self.options[name]), device=like.device, requires_grad=True)
        self.refit()
        return True

    def penalty(self) -> Tensor:
        """`distance() * share()`, the loss of the weights."""
        return self.distance() * self.share().detach()

    @exclusive
    def refit(self) -> None:
        """Fit all candidates to the present weights, and update their predicted errors."""
        for name, options in self.options.items():
            site, weight = self.sites[name], site_weight(self.model, self.sites[name])
            dtype = read(self.model.get_submodule(name)).dtype
            fitted = [self._fitted(site, weight, option) for option in options]
            self.fits[name] = torch.stack([fit for fit, _ in fitted]).to(dtype)
            self.options[name] = tuple(
                replace(option, error=error) for option, (_, error) in zip(options, fitted, strict=True)
            )

    def plan(self, keep: Mapping[str, float] | None = None) -> Plan:
        """The candidates with the largest weights; within budgets those with the largest product of weights.

        `max sum_i log p_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u`

        Raises:
            ValueError: for budgets that the candidates cannot meet.
        """
        curves = {name: self.options.get(name, (dense_option(site),)) for name, site in self.sites.items()}
        planner = Planner.of(self.model, self.sites, metric="weight", curves=curves)
        logs = {name: self.weights(name).log().clamp_min(ABSENT).tolist() for name in self.options}
        return planner.plan(Request(rule=_Likeliest(logs=logs), keep=keep))

    def _fitted(self, site: Site, weight: Tensor, option: Option) -> tuple[Tensor, float]:
        if option.format == DENSE:
            return weight, 0.0
        metrics = identity_metrics(site.groups, site.in_features, weight.device)
        factors = get_format(option.format).fit(site, weight, metrics, option.ranks)
        return factors.dense(), factors.error


@dataclass(frozen=True, kw_only=True)
class _Likeliest(Rule):
    """The options with the largest product of weights."""

    name: ClassVar[str] = "rank_search"
    summary: ClassVar[str] = "the largest product of the weights that a search has found"
    needs_budget: ClassVar[bool] = False

    logs: Mapping[str, Sequence[float]]

    def choose(self, problem: Problem) -> list[Pick]:
        logs = [self.logs.get(site.name, (0.0,)) for site in problem.sites]
        picks = least(problem, [[-log for log in own] for own in logs])
        return [
            Pick(pick.option, f"rank_search: weight {math.exp(own[pick.option]):.2g}, {described(site, pick.option)}")
            for site, pick, own in zip(problem.sites, picks, logs, strict=True)
        ]

    def __str__(self) -> str:
        return self.name


def _spread(span: tuple[int, int], count: int) -> list[int]:
    """Places spread evenly over a span, with both ends.

    Example:
        >>> _spread((0, 9), 4), _spread((3, 5), 4)
        ([0, 3, 6, 9], [3, 4, 5])
    """
    low, high = span
    return sorted({round(low + (high - low) * k / (count - 1)) for k in range(count)})

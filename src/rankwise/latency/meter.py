"""Latency of a network on an engine and of each option: the prices of a latency budget, in microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..formats import get_format
from ..network.site import Site
from ..plan import Option, Plan, dense_option
from ..plan.plan import PlannedLatency
from ..running.arguments import arguments
from ..running.copying import copied
from ..running.pristine import pristine
from ..surgery.rebuild import rebuild
from ..timing.clock import AGAIN, NOISE, Latency, Ratio, summary
from ..timing.load import Watch
from .engine import Running, Work
from .layers import randomised
from .table import NARROW, Table

MICRO = 1e6


class Meter:
    """Times of plans, predicted and measured.

    `T(plan) = T(dense network) + gain * sum over sites of (t(option) - t(dense layer))`

    Layers are measured one by one, where nothing is fused with them and their inputs lie ready. A network really saves
    `gain` times what its layers save. The gain is 1 until a planned network has been measured. Layers may have been
    measured on another day, when the machine was faster or slower: all their times are scaled by what the dense layers
    take now, relative to what they took then.

    Args:
        table: times of the layers, measured already.
        example: an input, as for `find`.

    Attributes:
        dense: microseconds of the dense network.
        gain: see above.
        corrections: how often measured networks have corrected the gain.
    """

    def __init__(self, table: Table, example: Any) -> None:
        self.table, self.engine, self.gain, self.corrections = table, table.engine, 1.0, 0
        self._watch = Watch() if isinstance(self.engine, Running) else None
        with pristine(table.model):
            self._given = arguments(table.model, example)
        self._network = copied(table.model).eval().requires_grad_(False)
        self.engine.hold(Work(self._network, self._given))
        self.dense = self._times({}, narrow=NARROW)["dense"].median * MICRO
        self._drift = table.drift()

    def costs(self, site: Site, options: Sequence[Option]) -> tuple[float, ...]:
        """Microseconds of every option of a site; the dense layer costs what it takes by itself."""
        dense = self.table.seconds(site.name, dense_option(site)).median
        seconds = [self.table.seconds(site.name, option).median for option in options]
        return tuple([MICRO * self._drift * (dense + self.gain * (each - dense)) for each in seconds])

    def check(self, plan: Plan) -> PlannedLatency:
        """Build the planned network, time it beside the dense one, and correct the gain by the result.

        The measured time is the ratio of both in this run, times the first time of the dense network. So a machine that
        is slower now does not count against the plan.

        Returns:
            Milliseconds: predicted by the plan, predicted without any correction, and measured.
        """
        predicted, corrections = plan.planned["latency"], self.corrections
        blind = self.dense + (predicted - self.dense) / self.gain
        took = Ratio(median=1.0, low=1.0, high=1.0)
        if plan.factorised:
            took = self._ratio(self.built(plan))
            if predicted < self.dense:
                self.gain *= max(self.dense * (1 - took.median), 0.01 * self.dense) / (self.dense - predicted)
                self.corrections += 1
        if self._watch is not None:
            self._watch.look()
        return PlannedLatency(
            engine=self.engine.name,
            device=self.engine.device(self._network),
            threads=self.engine.threads,
            dense=self.dense / 1000,
            predicted=predicted / 1000,
            measured=self.dense * took.median / 1000,
            low=self.dense * took.low / 1000,
            high=self.dense * took.high / 1000,
            blind=blind / 1000,
            corrections=corrections,
        )

    def built(self, plan: Plan) -> nn.Module:
        """The planned network with random factors: they are as fast as fitted ones."""
        network = copied(self._network)
        for row in plan.factorised:
            site, bias = self.table.sites[row.site], self.table.bias[row.site]
            randomised(rebuild(network, site.role, site.names, get_format(row.format), row.ranks, bias, site.feeders))
        return network.eval().requires_grad_(False)

    def _ratio(self, network: nn.Module) -> Ratio:
        """Time of a network over that of the dense one, measured until its interval is narrow enough to decide."""
        pairs: list[float] = []
        planned = Work(network, self._given)
        self.engine.hold(planned)
        for _ in range(AGAIN):
            times = self._times({"planned": network})
            ratio = times["planned"] / times["dense"]
            if not times["planned"].rounds:  # computed, not measured
                return ratio
            rounds = zip(times["planned"].rounds, times["dense"].rounds, strict=True)
            pooled = summary(pairs := [*pairs, *(own / dense for own, dense in rounds)])
            ratio = Ratio(median=pooled.median, low=pooled.low, high=pooled.high)
            if ratio.high - ratio.low <= NOISE:
                break
        return ratio

    def _times(self, networks: Mapping[str, nn.Module], narrow: float | None = None) -> dict[str, Latency]:
        works = {name: Work(network, self._given) for name, network in {"dense": self._network, **networks}.items()}
        return self.engine.times(works, rounds=None, narrow=narrow)

"""Times of the layers of a network and of all their options on an engine."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from torch import nn

from ..formats import Ranks
from ..metrics import FitMetric
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, dense_option
from ..timing.clock import FIGURES, Latency
from .cache import Cache
from .engine import Engine, Running, Work
from .estimate import Estimate, spread
from .grid import Grid, grid_of
from .layers import Input, calls_of, layers_of, signature, work_of

# Options to measure per format: for one rank, and more for each further rank.
PROBES, PROBES_MORE = 6, 3
# Then all others are measured, quick ones first, as long as their runs take no more seconds together.
LEARNING = 5.0
# An estimate may be wrong by so much: options that others with less error beat by more are not measured.
FASTER = 0.8
ROUNDS, WARMUP = 20, 2
# Times whose interval is wider than this share are measured for longer.
NARROW = 0.06
# The name of a call that runs no layer; and the share of a time that a layer takes at least.
NOTHING, LEAST = "nothing", 0.05
# Dense layers that tell how fast the machine is now, at most about this many.
DRIFTING = 8
# Between two runs of a layer a network reads the weights of all others. CPU caches hold no more bytes than this.
AROUND = 32 << 20
# Layers that are timed in turns, at most: of hundreds none finds its own instructions and weights in a cache. And the
# bytes of their weights and inputs.
TURNS, TOGETHER = 24, 1 << 29


class _Part(NamedTuple):
    """One layer of a site with one of its inputs."""

    site: str
    layer: str
    input: Input


# Signature of a dense layer -> signature of an option -> the option, and where; the dense layer is among them.
Todo = dict[str, dict[str, tuple[_Part, Option]]]


class Table:
    """Seconds of every option of every site, measured or estimated.

    A site takes the sum over its calls. Layers with the same shape and inputs are measured once, even across networks:
    measured times are stored on disk.

    Args:
        engine: that will run the network.
        model: the dense network.
        sites: of the network.
        example: an input, as for `find`.
        metric: of the plans; it tells whether chains have a bias.
        cache: where times are stored; by default the engine's file.
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        sites: Sites,
        example: Any,
        *,
        metric: str | FitMetric = "input",
        cache: Cache | None = None,
    ) -> None:
        self.engine, self.model, self.sites = engine, model, sites
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        self._around = min(1 << max(weights.bit_length() - 1, 0), AROUND)
        self._cache = Cache(engine, model, self._around) if cache is None else cache
        self.bias = {name: site.chain_bias(metric) for name, site in sites.items()}
        calls = calls_of(model, sites, example)
        self._parts = {
            name: Counter(_Part(name, layer, given) for layer, inputs in calls[name].items() for given in inputs)
            for name in sites
        }
        self._keys: dict[tuple[_Part, str, Ranks], str] = {}
        self._estimates: dict[tuple[str, str], Estimate] = {}
        self._seconds: dict[tuple[str, str, Ranks], Latency] = {}
        self._options: dict[str, Curve] = {}
        self._grid: Grid | None = None
        self._confirmed: set[str] = set()
        self._fresh: set[str] = set()  # dense layers that were first measured by this table

    def learn(
        self,
        options: Mapping[str, Sequence[Option]],
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    ) -> None:
        """Measure as many options of every site as it takes to estimate the others; all of them if layers are quick.

        Args:
            options: of the sites that may be factorised.
            progress: as for `measure`.

        Raises:
            ValueError: naming the layer, if the engine cannot run it.
        """
        self._options = {name: tuple(curve) for name, curve in options.items()}
        self.measure([pair for name, curve in options.items() for pair in _probes(name, curve)], progress)
        while quick := self._quick():  # what is measured may show that other options are worth it
            self.measure(quick, progress)

    def _quick(self) -> list[tuple[str, Option]]:
        """Options that were not measured but may be chosen, quick ones first.

        They seem faster than the dense layer, and no option that seems much faster has as little error. The runs of all
        such options, with those that were measured, take up to `LEARNING` seconds.
        """
        rest: dict[tuple[str, ...], tuple[float, str, Option]] = {}
        for name, curve in self._options.items():
            times = sorted([(self.seconds(name, option).median, option.error, option) for option in curve], key=_first)
            dense, least, much = self.seconds(name, dense_option(self.sites[name])).median, math.inf, 0
            for seconds, error, option in times:
                while times[much][0] < FASTER * seconds:
                    least, much = min(least, times[much][1]), much + 1
                if seconds < dense and error < least:
                    rest[tuple([self._key(part, option) for part in self._parts[name]])] = seconds, name, option
        quick, left = [], LEARNING
        for seconds, name, option in sorted(rest.values(), key=_first):
            left -= seconds * (ROUNDS + WARMUP)
            if left < 0:
                break
            if (name, option) not in self:
                quick.append((name, option))
        return quick

    def measure(
        self,
        wanted: Iterable[tuple[str, Option]],
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    ) -> None:
        """Measure options of sites that were not measured before, each beside its dense layer.

        The times of a batch are scaled so that its dense layers take what they took when first measured: a machine that
        is slower today is as slow for both.

        Args:
            wanted: site names, and options.
            progress: wraps the batches that are measured, for a progress bar.

        Raises:
            ValueError: naming the layer, if the engine cannot run it.
        """
        todo: Todo = defaultdict(dict)
        for name, option in wanted:
            for part in self._parts[name]:
                key = self._key(part, option)
                if key not in self._cache:
                    dense = dense_option(self.sites[name])
                    todo[self._key(part, dense)] |= {self._key(part, dense): (part, dense), key: (part, option)}
        self._measure_all(todo, progress)

    def confirm(self, wanted: Iterable[tuple[str, Option]]) -> bool:
        """Measure options once more that a decision depends on; returns whether there was one to measure.

        Of many options the ones measured too fast are chosen first. Measured again beside their dense layers alone,
        they get the new times.
        """
        todo: Todo = defaultdict(dict)
        for name, option in wanted:
            for part in self._parts[name]:
                key = self._key(part, option)
                if key not in self._confirmed:
                    dense = dense_option(self.sites[name])
                    todo[self._key(part, dense)] |= {self._key(part, dense): (part, dense), key: (part, option)}
        self._measure_all(todo, again=True)
        self._confirmed.update(key for each in todo.values() for key in each)
        return bool(todo)

    def _measure_all(
        self,
        todo: Todo,
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
        again: bool = False,
    ) -> None:
        batches = list(self._batches(todo))
        for batch in batches if progress is None or not batches else progress(batches, "latency"):
            self._measure(batch, again)
        self._estimates.clear()
        self._seconds.clear()

    def drift(self) -> float:
        """What dense layers take now, over what they took when they were measured; 1 if that was just now."""
        old = {key: part for key, part in self._dense().items() if key not in self._fresh}
        if not old:
            return 1.0
        works = {key: work_of(self.model.get_submodule(part.layer), part.input) for key, part in old.items()}
        times = self._timed(works, {key: part.layer for key, part in old.items()})
        return median(times[key].median / self._cache[key].median for key in old)

    def _dense(self) -> dict[str, _Part]:
        """A part for each signature of a measured dense layer, a few of them spread over the network."""
        parts = [part for site in self._options for part in self._parts[site]]
        keys = {self._key(part, dense_option(self.sites[part.site])): part for part in parts}
        known = [(key, part) for key, part in keys.items() if key in self._cache]
        return dict(known[:: max(1, len(known) // DRIFTING)])

    def __contains__(self, pair: tuple[str, Option]) -> bool:
        """Whether the option of a site was measured."""
        name, option = pair
        return all(self._key(part, option) in self._cache for part in self._parts[name])

    def seconds(self, name: str, option: Option) -> Latency:
        """Seconds of an option of a site in one forward."""
        key = name, option.format, option.ranks
        if key not in self._seconds:
            self._seconds[key] = self._known(name, option)
        return self._seconds[key]

    def _known(self, name: str, option: Option) -> Latency:
        """The measured time, or the estimate."""
        if (name, option) in self:
            return self._measured(name, option)
        if (name, option.format) not in self._estimates:
            same = [each for each in self._options[name] if each.format == option.format]
            known: dict[Ranks, Latency] = {
                each.ranks: self._measured(name, each) for each in same if (name, each) in self
            }
            macs = {each.ranks: each.macs for each in same}
            self._estimates[name, option.format] = Estimate(known, macs, self._block(name))
        return self._estimates[name, option.format](option.ranks)

    def _block(self, name: str) -> int:
        """Channels that the engine computes at once in a layer of this kind."""
        if self._grid is None:
            self._grid = grid_of(self.engine, self.model)
        return self._grid.convolution if self.sites[name].is_convolution else self._grid.linear

    def is_faster(self, name: str, option: Option) -> bool:
        """Whether an option is faster than the dense layer beyond noise: the intervals do not overlap."""
        return self.seconds(name, option).high < self.seconds(name, dense_option(self.sites[name])).low

    def _measured(self, name: str, option: Option) -> Latency:
        times = [self._cache[self._key(part, option)] * count for part, count in self._parts[name].items()]
        return Latency(**{field: sum(getattr(time, field) for time in times) for field in FIGURES})

    def _key(self, part: _Part, option: Option) -> str:
        place = part, option.format, option.ranks
        if place not in self._keys:
            site, layer = self.sites[part.site], self.model.get_submodule(part.layer)
            self._keys[place] = signature(site, layer, part.input, option, self.bias[part.site])
        return self._keys[place]

    def _batches(self, todo: Todo) -> Iterator[Todo]:
        batch: Todo = {}
        count = size = 0
        for dense, each in todo.items():
            first, *others = each.items()
            part, _ = first[1]
            own = 4 * math.prod(part.input.shape) + sum(4 * option.params for _, option in each.values())
            for place in range(0, max(len(others), 1), TURNS):  # each batch with an option has its dense layer
                some = dict([first, *others[place : place + TURNS]])
                if batch and (count + len(some) > TURNS + 1 or size + own > TOGETHER):
                    yield batch
                    batch, count, size = {}, 0, 0
                batch[dense] = some
                count, size = count + len(some), size + own
        if batch:
            yield batch

    def _measure(self, batch: Todo, again: bool = False) -> None:
        works: dict[str, Work] = {}
        for dense, each in batch.items():  # the dense layer comes first, and all options share its input
            for key, (part, option) in each.items():
                chains = dict(layers_of(self.model, self.sites[part.site], option, self.bias[part.site]))
                works[key] = work_of(chains[part.layer], works.get(dense, part.input))
        layers = {key: part.layer for each in batch.values() for key, (part, _) in each.items()}
        times = self._timed(works, layers)
        for dense, each in batch.items():
            # All times as if the machine were as fast as when the dense layer was first measured.
            drift = self._cache[dense].median / times[dense].median if dense in self._cache else 1.0
            for key in each:
                times[key] = times[key] * drift
        dense_keys = batch.keys()
        self._fresh.update(key for key in dense_keys if key not in self._cache)
        self._cache.add(
            {key: time for key, time in times.items() if key not in self._cache or (again and key not in dense_keys)}
        )

    def _timed(self, works: Mapping[str, Work], layers: Mapping[str, str]) -> dict[str, Latency]:
        """Times of layers, without what a call costs that runs no layer at all: a network pays for that once."""
        empty = (
            {NOTHING: Work(nn.Identity(), next(iter(works.values())).given)} if isinstance(self.engine, Running) else {}
        )
        times = self.engine.times(
            {**works, **empty},
            rounds=ROUNDS,
            warmup=WARMUP,
            around=self._around,
            narrow=NARROW,
            layers={**layers, NOTHING: NOTHING},
        )
        if not empty:
            return times
        call = times.pop(NOTHING).median
        return {key: _without(call, time) for key, time in times.items()}


def _without(call: float, time: Latency) -> Latency:
    """The time without a call's own, but at least `LEAST` of it."""
    return Latency(**{name: max(getattr(time, name) - call, LEAST * getattr(time, name)) for name in FIGURES})


def _first(row: tuple[float, Any, Any]) -> float:
    return row[0]


def _probes(name: str, curve: Sequence[Option]) -> Iterator[tuple[str, Option]]:
    """The options of a site to measure: dense, and some ranks of every format."""
    formats: dict[str, dict[Ranks, Option]] = defaultdict(dict)
    for option in curve:
        formats[option.format][option.ranks] = option
    for format, options in formats.items():
        if format == DENSE:
            yield from ((name, option) for option in options.values())
        else:
            count = PROBES + PROBES_MORE * (len(next(iter(options))) - 1)
            yield from ((name, options[ranks]) for ranks in spread(list(options), count))

"""The flow, written once: find -> collect -> choose -> shrink -> choose -> factorise, which checks its result."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .drawing import WHITE, Bar, bars_figure
from .evaluate import Size, size
from .evaluate.measures import measure_of_plans
from .factorisation import factorise
from .factorisation.further import Further
from .factorisation.refitting import last_layers, refit, tell_rows
from .factorisation.shrinkage import choose_shrinkage
from .files import digest
from .files.tables import html_table
from .formats import Format
from .network.find import find
from .network.forward import Joined
from .network.sites import Sites, fingerprint
from .plan import Plan
from .planning.choose import choose
from .planning.pareto import pareto
from .planning.planner import Planner
from .planning.unmet import check_budgets
from .planning.wishes import Asked
from .running.batches import Batches
from .running.example import with_example
from .running.guards import unwrap
from .running.outputs import Outputs
from .running.verbs import verb
from .statistics import Statistics
from .statistics.collection import collect
from .statistics.gradients import WithLabels, stated_loss
from .statistics.sampling import Sampling
from .statistics.shrinkage import check_shrink
from .surgery.unfusing import unfused
from .work import CURVES, LAYERS, PLAN, Work

logger = logging.getLogger("rankwise")

METHODS = ("auto", "sequential", "one-shot")
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


# From so many rows for each input of the widest layer on, the method "auto" tries sequential fits of joint sites.
SEQUENTIAL_ROWS = 40


class Clock:
    """Seconds by verb: `with clock("choose"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[verb] = self.seconds.get(verb, 0.0) + time.perf_counter() - start


@dataclass(kw_only=True)
class Session:
    """One network on its way to a smaller one; the first verb that needs statistics collects them.

    Attributes:
        sites: what can be factorised; after collecting, only what the data reached.
        example: the input that sites were found with.
        gradients: whether to collect statistics of gradients too, as for `collect`.
        next_token: whether these are gradients of the loss of the next token, for batches of tokens.
        only: names of the sites to collect statistics of; None for all.
        given: reads existing statistics, perhaps of other data.
        collected: called with statistics once they are collected.
        sampling: which rows of the data are used.
        further: batches like the data, for fits alone: plans are made without them. One-shot fits get their last least
            squares on them too, sequential ones run over them too, and with the method "auto" a part of them judges.
        work: the parts that are done, and where they are kept.
        progress: wraps batches and sites, for progress bars.
        name: the data's, for messages.
    """

    model: nn.Module
    sites: Sites
    example: Any
    data: Iterable[Any] | None
    method: str = "sequential"
    gradients: bool | str = False
    next_token: bool = False
    only: Collection[str] | None = None
    given: Callable[[], Statistics] | None = None
    collected: Callable[[Statistics], object] = lambda stats: None
    sampling: Sampling = field(default_factory=Sampling)
    further: Further | None = None
    work: Work = field(default_factory=Work)
    progress: Progress | None = None
    name: str = "the data"
    clock: Clock = field(default_factory=Clock)
    _statistics: Statistics | None = None

    @property
    def statistics(self) -> Statistics:
        """The statistics, given or else collected."""
        if self._statistics is None:
            self._statistics = self._collect() if self.given is None else self.given()
        return self._statistics

    def _collect(self) -> Statistics:
        collecting = partial(
            collect,
            self.model,
            WithLabels(self.data) if self.next_token and self.data is not None else self.data,
            example=self.example,
            only=self.only,
            gradients=self.gradients,
            loss=stated_loss if self.next_token else None,
            progress=self.progress,
            joint=self.sites.joint,
            **vars(self.sampling),
        )
        with self.clock("collect"):
            stats = self.work.statistics(self.model, self.example, collecting)
        self.sites = stats.sites
        self.collected(stats)
        return stats

    def source(self, wishes: Mapping[str, Any]) -> Statistics | Sites:
        """What a plan with these arguments of `choose` is made from."""
        asked = Asked.of(**wishes)
        return self.statistics if asked.metric.needs_statistics or asked.needs_gradients else self.sites

    def plan(self, wishes: Mapping[str, Any], shrink: float | str | None = None) -> Plan:
        """Choose formats and ranks by `wishes` for `choose`; again if `share_for` then finds another share."""

        def best() -> Plan:
            plan = self._choose(wishes, 0.0 if shrink in (None, "auto") else shrink)
            share = self.share_for(plan, shrink)
            return plan if share == plan.shrink else self._choose(wishes, share)

        return self.work.once(PLAN, best)

    def _choose(self, wishes: Mapping[str, Any], share: Any) -> Plan:
        source, done = self.source(wishes), self.work.of(CURVES, share)
        with self.clock("choose"):
            return choose(self.model, source, shrink=share, done=done, progress=self.progress, **wishes)

    def planner(self, wishes: Mapping[str, Any]) -> Planner:
        """What makes a plan for any budget; `wishes` as for `plan`, with the share of the weight metric in `shrink`."""
        source, done = self.source(wishes), self.work.of(CURVES, wishes.get("shrink", 0.0))
        with self.clock("choose"):
            return Planner.of(self.model, source, done=done, progress=self.progress, **wishes)

    def plans(self, wishes: Mapping[str, Any], keeps: Sequence[Mapping[str, float]], nested: bool) -> list[Plan]:
        """One plan per budget of `keeps`, each inside the one before if `nested`; `wishes` as for `plan`."""
        source = self.source(wishes)
        with self.clock("choose"):
            return pareto(self.model, source, keeps=keeps, nested=nested, progress=self.progress, **wishes)

    def share_for(self, plan: Plan, wanted: float | str | None) -> Any:
        """The share of the weight metric that the fits of a plan shall have.

        Args:
            wanted: a share; "auto" to choose it on the data as held-out samples; None for the plan's own, or as "auto"
                for one-shot fits on given statistics with data.
        """
        if wanted is not None and wanted != "auto":
            return wanted
        asked = wanted == "auto" or (self.given is not None and self.method == "one-shot" and not plan.shrink)
        if not asked or self.data is None or not plan.fit_metric.shrinkable or not plan.factorised:
            return plan.shrink
        stats, sampling = self.statistics, self.sampling
        with self.clock("shrinkage"):
            share = choose_shrinkage(
                self.model,
                plan,
                stats,
                self.data,
                positions=sampling.positions,
                seed=sampling.seed,
                progress=self.progress,
            )
        logger.info("shrinkage towards the weight metric: %g, chosen on %s", share, self.name)
        return share

    def factorise(
        self,
        plan: Plan,
        *,
        formats: Mapping[str, Format] | None = None,
        step: Callable[[str], None] = lambda site: None,
    ) -> nn.Module:
        """The factorised network, checked; `formats` and `step` as for `rankwise.factorise`."""
        methods = ("one-shot", "sequential") if self.method == "auto" else (self.method,)
        made: dict[str, nn.Module] = {}
        with self.clock("factorise"):
            for method in methods:
                if made and not self._may_help(plan):
                    break
                done = self.work.of(LAYERS, method if len(methods) > 1 else "")
                made[method] = self._fitted(plan, method, formats=formats, step=step, done=done)
            return self._nearest(made) if len(made) > 1 else made[methods[0]]

    def trial(self, plan: Plan, method: str | None = None) -> nn.Module:
        """The network of a plan that is only tried, on the data alone; nothing is stored."""
        method = method or self.method
        return self._factorised(plan, "one-shot" if method == "auto" else method, self.data)

    def _fitted(self, plan: Plan, method: str, **options: Any) -> nn.Module:
        """The factorised network, fitted on the data and on what there is beyond."""
        if method == "sequential" and self.further is not None and self.data is not None:
            return self._factorised(plan, method, self.further.with_fitted(self.data), **options)
        small = self._factorised(plan, method, self.data, **options)
        if method == "sequential" or not plan.fit_metric.needs_statistics:
            if self.further is not None:
                logger.info("nothing is refitted: fits in the metric %s use no data", plan.metric)
            return small
        if self.further is None or self.data is None or not last_layers(small, self.model):
            if self.sites.joint:
                tell_rows(self._rows(plan), "one-shot fits have seen")
            return small
        both = self.further.with_fitted(self.data)
        return refit(small, self.model, both, mask=self.sampling.mask, progress=self.progress)

    def _factorised(self, plan: Plan, method: str, data: Iterable[Any] | None, **options: Any) -> nn.Module:
        metric, needed = plan.fit_metric, plan.fit_metric.needs_gradients
        if method == "one-shot":
            needed = metric.needs_statistics
        else:
            options |= {"data": data, "example": self.example, **vars(self.sampling)}
        return factorise(self.model, plan, self.statistics if needed else self.sites, **options)

    def _rows(self, plan: Plan) -> list[tuple[int, int]]:
        """Rows and inputs of the sites that are factorised."""
        return [(self.statistics[row.site].count, self.sites[row.site].in_features) for row in plan.factorised]

    def _may_help(self, plan: Plan) -> bool:
        """Whether there are enough rows for sequential fits, which follow what they see more closely."""
        assert self.further is not None
        assert self.data is not None
        share = self.further.growth(self.data)
        enough = (
            plan.fit_metric.needs_statistics
            and bool(plan.factorised)
            and all(share * rows >= SEQUENTIAL_ROWS * inputs for rows, inputs in self._rows(plan))
        )
        if not enough:
            logger.info("one-shot: sequential fits need %d rows for each input of the widest layer", SEQUENTIAL_ROWS)
        return enough

    def _nearest(self, made: Mapping[str, nn.Module]) -> nn.Module:
        """The network nearest to the dense one on batches that none was fitted to."""
        assert self.further is not None
        measure = measure_of_plans(Outputs.of(self.model, self.further.batches.first()))
        held_out, fitted = self.further.held_out, self.further.as_many_fitted
        errors = {method: measure(small, self.model, held_out) for method, small in made.items()}
        for method, small in made.items():
            seen = measure(small, self.model, fitted)
            logger.info(
                "%s: %s %.4g on held-out batches, %.4g on fitted ones", method, measure.title, errors[method], seen
            )
        best = min(errors, key=errors.__getitem__)
        logger.info("%s is taken: nearest on the held-out batches", best)
        return made[best]

    def release(self) -> None:
        """Free the memory of the statistics: sequential fits collect moments of their own."""
        self._statistics = None


def method_for(method: str, *, joint: bool, judged: bool) -> str:
    """What "auto" stands for: "sequential", and for joint sites "one-shot" unless batches can judge between the two.

    Fits of joint sites have many inputs: sequential ones follow the few tokens that they see.
    """
    if method != "auto" or (joint and judged):
        return method
    return "one-shot" if joint else "sequential"


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """What `compress` did.

    Attributes:
        sites: what could be factorised.
        dense, compressed: parameters, MACs and bytes of the two networks.
        seconds: time by verb.
    """

    sites: Sites
    plan: Plan
    dense: Size
    compressed: Size
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = []
        for name in ("params", "macs", "bytes"):
            before, after = getattr(self.dense, name), getattr(self.compressed, name)
            lines.append(f"{name:>7} {before:>15,} -> {after:>15,}  ({after / before:.3f})")
        if self.plan.latency is not None:
            lines.append(f"latency {self.plan.latency}")
        factorised = len(self.plan.factorised)
        lines.append(f"{factorised} of {len(self.plan)} sites factorised in {sum(self.seconds.values()):.1f} s")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The sizes and the plan as tables, in notebooks."""
        rows = [
            [name, f"{before:,}", f"{after:,}", f"{after / before:.3f}"]
            for name in ("params", "macs", "bytes")
            if (before := getattr(self.dense, name)) and (after := getattr(self.compressed, name)) is not None
        ]
        sizes = html_table(["", "dense", "compressed", "compressed / dense"], rows, right=(1, 2, 3))
        return sizes + self.plan._repr_html_()

    def plot(self) -> Any:
        """What is kept of parameters, MACs and bytes as bars, a figure of matplotlib.

        Raises:
            ImportError: without matplotlib, with the command that installs it.
        """
        names = ("params", "macs", "bytes")
        shares = [(name, getattr(self.compressed, name) / getattr(self.dense, name)) for name in names]
        return bars_figure([Bar(name, 100 * share) for name, share in shares], "% of dense", colours=WHITE)


@verb
def compress(
    model: nn.Module,
    data: Iterable[Any],
    *,
    keep: Mapping[str, float | str] | float | None = None,
    method: str = "sequential",
    refit: Iterable[Any] | None = None,
    stats: Statistics | None = None,
    shrink: float | None = None,
    example: Any = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    **options: Any,
) -> tuple[nn.Module, CompressReport]:
    """Compress a trained network with unlabelled samples and a budget; no gradient step.

    Fused projections, such as those of `nn.MultiheadAttention`, become layers first (`unfused`).

    Args:
        model: the dense network; it is not changed.
        data: a few hundred samples without labels, in any iterable of batches that can be iterated again.
        keep: the budgets, for instance {"macs": 0.5}; see `choose`. A number alone is a share of the MACs.
        method: "sequential" (each site is fitted on what the compressed network really feeds it) or "one-shot". "auto"
            is sequential; for sites found with `joint` it is one-shot, or with `refit` and enough of it (40 rows for
            each input of the widest layer) whichever is nearer to the dense network on every eighth batch of `refit`.
        refit: further batches for fits alone, made like `data`; see `Further` and `rankwise.refit`.
        stats: statistics collected before, of these or other data; by default collected from `data`, with gradients
            if metric or rule need them.
        shrink: share of the weight metric, 0 to 1. By default 0; for one-shot with `stats` what `choose_shrinkage`
            finds on `data`.
        example: input for counting MACs and measuring latency, as for `find`; by default the first sample of the data,
            or the whole first batch if one sample cannot stand for it.
        checkpoint: folder for statistics, curves, plan and factorised layers, each written as soon as it is done.
            Delete it once the result is saved.
        resume: resume from the checkpoint; with the same arguments the result is the same to the bit.
        progress: wraps batches and sites, for progress bars.
        **options: positions, seed, mask and joint of `collect`; rule, evaluate, formats, metric, include, ignore, pin,
            floor, cap, tie, uniform, round_to of `choose`; engine and threads, for a latency budget or to measure what
            the plan saves.

    Returns:
        The compressed network, of the same class, and a report.

    Raises:
        ValueError: as for `collect`, `choose` and `factorise`; the model is unchanged. Also for a checkpoint that is
            missing, damaged or from another run, or data that differs between passes.
        OSError: if the checkpoint cannot be begun; a later failure to write it is logged.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small, report = compress(net, [torch.randn(32, 64) for _ in range(8)], keep={"params": 0.5})
        >>> report.compressed.params <= 0.5 * report.dense.params
        True
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}")
    model = unwrap(model)
    chosen = {name: options.pop(name) for name in vars(Sampling()) if name in options}
    joint: Joined = options.pop("joint", options.get("uniform", False))
    sampling, constraints = Sampling(**chosen), options
    asked = Asked.of(keep={"macs": keep} if isinstance(keep, float) else keep, **constraints)
    keep = asked.keep
    replace(asked, example=data if asked.measures else None).check(model)
    check_shrink(shrink or 0.0)
    work = Work(checkpoint, resume)
    example, batches = with_example(model, Batches.of(data), example)
    if stats is None or stats.sites.fingerprint != fingerprint(model):
        model = unfused(model, example)
    sites = find(model, example, joint=joint) if stats is None else stats.sites
    if joint and not sites.joint and find(model, example, joint=joint).joint:
        raise ValueError(f"joint={joint!r} has no effect on these statistics; collect them with it, or leave out stats")
    check_budgets(model, sites, keep, asked.constraints)
    method = method_for(method, joint=bool(sites.joint), judged=refit is not None)
    further = None if refit is None else Further(refit, judges=method == "auto")
    settings = {
        "keep": keep,
        "method": method,
        "shrink": shrink,
        **vars(sampling),
        **({"joint": joint if isinstance(joint, bool) else sorted(joint)} if joint else {}),
        **({} if further is None else {"refit": digest(list(further.batches), loose=True)}),
    }
    given = {"statistics": stats and digest(dict(stats), loose=True), "example": digest(example, loose=True)}
    work.begin(model, batches, {**settings, **given, **constraints})
    session = Session(
        model=model,
        sites=sites,
        example=example,
        data=batches,
        method=method,
        gradients=asked.gradients,
        next_token=asked.rule.needs_loss,
        given=None if stats is None else lambda: stats,
        sampling=sampling,
        further=further,
        work=work,
        progress=progress,
    )
    assert session.statistics is not None  # collected for every metric: layers that the data never reach stay dense
    plan = session.plan({"keep": keep, **constraints, **({"example": example} if asked.measures else {})}, shrink)
    if session.method == "sequential" and not plan.fit_metric.needs_gradients:
        session.release()
    with _visits(plan, progress if method == "sequential" else None) as step:
        small = session.factorise(plan, formats=asked.known_formats, step=step)
    report = CompressReport(
        sites=session.sites,
        plan=plan,
        dense=size(model, example),
        compressed=size(small, example),
        seconds=session.clock.seconds,
    )
    return small, report


@contextmanager
def _visits(plan: Plan, progress: Progress | None) -> Iterator[Callable[[str], None]]:
    """A function to call as each site begins, which moves a progress bar on; at the end the bar is full."""
    visits = iter([] if progress is None else progress(plan.factorised, "factorise"))

    def step(site: str) -> None:
        next(visits, None)

    yield step
    deque(visits, maxlen=0)

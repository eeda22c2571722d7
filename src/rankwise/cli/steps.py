"""The steps that `compress`, `plan` and `apply` share, with files and messages around the library's verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs.data import Data, DataOptions, random_data
from ..inputs.loading import load_data, load_example
from ..inputs.models import is_torchvision, load_model
from ..metrics import METRICS
from ..names import STORAGES
from .constraints import check_method
from .importance import Selection, selecting
from .judging import Judging
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..network.sites import Sites
    from ..plan import Plan
    from ..planning.planner import Planner
    from ..running.seen import Seen
    from ..statistics import Statistics
    from ..work import Work
    from .figures import Timing


def _unkept() -> Work:
    from ..work import Work

    return Work()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network, its sites, and the data at hand.

    Args:
        out: where messages go.
        spec: MODEL as the user wrote it.
        network: the dense network.
        sites: what can be factorised in it.
        data: calibration data, None where a plan needs none.
        test: held-out data, None where the user has none.
        stats: the statistics file, None for none.
        example: one input.
        seed: of everything random.
        stored: whether the statistics file was there already, so that it may be of other data.
        batch: samples in a batch.
        gradients: whether statistics that are collected need gradients.
        judging: what networks are judged by.
        searched: data that a search was judged on.
        work: what is done, and the folder that keeps it.
    """

    out: Output
    spec: str
    network: nn.Module
    sites: Sites
    data: Data | None
    test: Data | None
    stats: Path | None
    example: Any
    seed: int
    stored: bool = False
    batch: int = 64
    gradients: bool = False
    judging: Judging = field(default_factory=Judging)
    searched: list[Data] = field(default_factory=list)
    work: Work = field(default_factory=_unkept)

    @classmethod
    def start(
        cls,
        out: Output,
        spec: str,
        weights: Path | None,
        data: str | None,
        how: DataOptions,
        *,
        samples: int,
        stats: Path | None = None,
        test: str | None = None,
        input_shape: str | None = None,
        folder: Path | None = None,
        gradients: bool = False,
        fold: bool = False,
        wishes: Mapping[str, Any] | None = None,
        judging: Judging | None = None,
        work: Work | None = None,
    ) -> Job:
        """Load everything that the command names, before any long work begins."""
        import torch

        from ..network.find import find
        from ..planning.constraints import Constraints
        from ..planning.unmet import check_budgets
        from ..planning.wishes import Asked, check_wishes
        from ..running.state import state_of
        from ..surgery.folding import folded
        from ..work import STATISTICS, Work

        torch.manual_seed(how.seed)
        if folder is not None:
            check_folder(folder)
        with out.step("loading the network"):
            network = folded(load_model(spec, weights)) if fold else load_model(spec, weights)
            if folder is not None:
                state_of(network)  # what cannot be saved is told before the work
        warn_about_random_weights(out, spec, weights)
        check_wishes(network, Asked.of(**(wishes or {})))
        with out.step("reading the data"):
            calibration = None if data is None else load_data(data, how, network=network, model=spec, samples=samples)
            held_out = None if test is None else load_data(test, how, network=network, model=spec, default_split="test")
        if calibration is not None:
            count = f"up to {samples}" if calibration.samples is None else f"{calibration.samples}"
            out.say(f"calibration: {count} samples of {calibration.name}, {calibration.prepared}")
        example = load_example(calibration or held_out, input_shape, how, spec, network)
        with out.step("finding what can be factorised"):
            sites = find(network, example)
        if wishes is not None:
            asked = Constraints(**{name: wishes[name] for name in vars(Constraints()) if name in wishes})
            check_budgets(network, sites, wishes.get("keep"), asked)
        job = cls(
            out=out,
            spec=spec,
            network=network,
            sites=sites,
            data=calibration,
            test=held_out,
            stats=stats,
            stored=stats is not None and stats.exists() and not (work and STATISTICS in work),
            example=example,
            batch=how.batch,
            gradients=gradients,
            judging=judging or Judging(),
            seed=how.seed,
            work=work or Work(),
        )
        job.judging.check(network, job.measured_on)
        return job

    def begin(self, options: Mapping[str, Any]) -> None:
        """Say in the folder of `work` what this run is of.

        Args:
            options: those of the command that decide what comes out, beside MODEL and DATA.

        Raises:
            ValueError: where the folder is of another run.
        """
        from ..files import digest, sha256_of

        if self.work.folder is None:
            return
        of_file = sha256_of(self.stats) if self.stored and self.stats else None
        used = {"seed": self.seed, "example": digest(self.example, loose=True), "statistics": of_file}
        self.work.begin(self.network, None if self.data is None else self.data.pairs, {**options, **used})

    @property
    def measured_on(self) -> Data:
        """The data that figures come from: held-out data, the calibration samples, or where there are none a shape."""
        return self.test or self.data or random_data(self.example, self.batch)

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """Samples that were used, by use: not those of calibration where a file of statistics was read, which has none.

        Read when the work is done.
        """
        from ..running.seen import Seen

        from_file = self.stored and "statistics" in vars(self)
        own = [] if self.data is None else [self.data]
        used = {"search": [*self.searched, *(own if from_file else [])]} | ({} if from_file else {"calibration": own})
        found = {use: Seen.of(chain.from_iterable(data.inputs for data in each)) for use, each in used.items()}
        return {use: each for use, each in found.items() if each.samples or use == "calibration"}

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics from the file, or collected from the data and written there; once, however often they are read."""
        from ..statistics import Statistics
        from ..statistics.collection import collect

        if self.stats is not None and self.stored:
            self.out.say(f"statistics: read from {self.stats}")
            stats = Statistics.load(self.stats)
            if stats.sites.fingerprint != self.sites.fingerprint:
                raise ValueError(f"--stats {self.stats} is of another network than {self.spec}; name another file")
            return stats
        if self.data is None:
            raise ValueError(
                "every metric but weight needs data: name DATA or an existing --stats FILE, or choose --metric weight"
            )
        collecting = partial(
            collect,
            self.network,
            self.data.inputs,
            example=self.example,
            gradients=self.gradients,
            seed=self.seed,
            progress=self.out.track,
        )
        stats = self.work.statistics(self.network, self.example, collecting)
        if self.stats is not None and not self.stats.exists():  # a run that goes on has written it
            stats.save(self.stats)
            self.out.say(f"statistics: written to {self.stats}")
        return stats

    def plan(self, wishes: Mapping[str, Any], shrink: float | str | None = None, method: str = "sequential") -> Plan:
        """Choose formats and ranks; `wishes` are the keyword arguments of `choose`, `shrink` is as for `shrunk`."""
        from ..planning.choose import choose
        from ..work import CURVES, PLAN

        source = self.source(wishes)

        def chosen(share: float) -> Plan:
            done = self.work.of(CURVES, share)
            return choose(self.network, source, progress=self.out.track, shrink=share, done=done, **wishes)

        def best() -> Plan:
            plan = chosen(shrink if isinstance(shrink, float) else 0.0)
            share = self.shrunk(plan, shrink, method).shrink
            return plan if share == plan.shrink else chosen(share)

        return self.work.once(PLAN, best)

    def source(self, wishes: Mapping[str, Any]) -> Statistics | Sites:
        """What a plan by these keyword arguments of `choose` is made from."""
        return self.statistics if METRICS[wishes["metric"]].needs_statistics or wishes_gradients(wishes) else self.sites

    def shrunk(self, plan: Plan, shrink: float | str | None, method: str) -> Plan:
        """The plan with the share of the weight metric that its fits are to have.

        Args:
            plan: formats and ranks, and the share that it was made with.
            shrink: a share; "auto" to choose it on DATA; None for the plan's own, or where one-shot fits follow a
                stored file without one and there is DATA, as "auto".
            method: how it will be factorised.
        """
        from ..factorisation.shrinkage import choose_shrinkage

        if isinstance(shrink, float):
            return replace(plan, shrink=shrink)
        transfers = self.stored and self.data is not None and plan.fit_metric.shrinkable
        if shrink == "auto" and not transfers:
            raise ValueError(
                "--shrink auto chooses on DATA how far to trust statistics of other data: name DATA and an existing "
                "--stats FILE, or give a number from 0 to 1"
            )
        if shrink is None and (plan.shrink or self.way(method) != "one-shot" or not transfers):
            return plan
        if self.data is None or not plan.factorised:
            return plan
        share = choose_shrinkage(
            self.network, plan, self.statistics, self.data.inputs, seed=self.seed, progress=self.out.track
        )
        self.out.say(f"shrinkage towards the weight metric: {share:g}, chosen on {self.data.name}")
        return replace(plan, shrink=share)

    def planner(
        self, wishes: Mapping[str, Any], shrink: float, evaluate: Any, times: Mapping[str, Any] | None = None
    ) -> Planner:
        """What makes plans for many budgets; `wishes` and `times` are keyword arguments of `choose`."""
        from ..planning.planner import Planner

        asked = {**wishes, **(times or {}), "shrink": shrink, "evaluate": evaluate, "progress": self.out.track}
        return Planner.of(self.network, self.source(wishes), **asked)

    def edited(self, plan: Plan) -> Plan:
        """The plan with its counts brought up to date after a person edited it."""
        from ..planning.prices import recount

        return recount(self.network, plan, self.sites)

    def way(self, method: str) -> str:
        """The method that `--method` stands for: without DATA there is only one."""
        if check_method(method) == "auto":
            return "one-shot" if self.data is None else "sequential"
        return method

    def factorise(self, plan: Plan, method: str, importance: Selection | None = None) -> nn.Module:
        """A factorised copy of the network; `importance` says how sparse low rank selects neurons."""
        from ..factorisation import factorise
        from ..work import LAYERS

        method = self.way(method)
        if method == "sequential" and self.data is None:
            raise ValueError("--method sequential runs over the data; name DATA, or choose --method one-shot")
        data = self.data.inputs if method == "sequential" and self.data else None
        stats: Statistics | Sites | None = None
        if data is None or plan.fit_metric.needs_gradients:
            stats = self.statistics if plan.fit_metric.needs_statistics else self.sites
        formats = None if importance is None else selecting(self, plan, importance)
        with self.out.stages("factorising", len(plan.factorised)) as step:
            example = None if data is None else self.example
            return factorise(
                self.network,
                plan,
                stats,
                data=data,
                seed=self.seed,
                step=step,
                formats=formats,
                example=example,
                done=self.work.of(LAYERS),
            )


def finish(
    job: Job, small: nn.Module, plan: Plan, folder: Path, *, command: str, timing: Timing, storage: str = "plain"
) -> None:
    """Write the artifact, measure it, and show what came out."""
    from ..artifact import as_stored, save, stored_bytes
    from .figures import figures_of, measure
    from .held_out import Judged
    from .tables import figures_table, plan_table

    # Written before anything is measured: a problem with test data must not cost the work so far. The second artifact
    # takes over what is not its own, the plan.
    save(small, folder, plan=plan, seen=job.seen)
    plan.save(folder / "plan.yaml")
    data = job.measured_on
    networks = {"dense": job.network, "compressed": as_stored(small, storage)}
    figures = measure(job.out, networks, data, timing=timing, judging=job.judging)
    save(small, folder, plan=plan, figures=figures_of(figures, data), storage=storage, seen=job.seen)
    figures["compressed"]["bytes"] = stored_bytes(folder)
    job.out.show(plan_table(plan, job.sites, job.out.console.width))
    if plan.latency is not None:
        job.out.say(f"latency: {plan.latency}")
    job.out.say("")
    job.out.show(figures_table(figures, timing.batch))
    judged = Judged.of(data, job.seen)
    job.out.say(f"\n{judged.text}")
    job.out.say(f"artifact: {folder}  (rankwise.json, model.safetensors; plan.yaml is not needed for loading)")
    job.out.result(
        command,
        {
            "artifact": folder,
            "plan": plan.to_dict(),
            "figures": figures,
            **judged.document(),
            "timing": timing.document(),
            "seed": job.seed,
        },
    )


def wishes_gradients(wishes: Mapping[str, Any]) -> bool:
    """Whether a plan by these keyword arguments of `choose` needs statistics with gradients."""
    from ..planning.wishes import Asked

    return Asked.of(**wishes).needs_gradients


def check_storage(storage: str) -> None:
    """Refuse an unknown `--storage` before any long work begins."""
    if storage not in STORAGES:
        raise ValueError(f"--storage {storage!r} is not one of {', '.join(STORAGES)}")


def check_folder(folder: Path) -> None:
    """Refuse a folder that an artifact cannot be written to, before any long work begins."""
    from ..artifact import MANIFEST

    if folder.is_file():
        raise ValueError(f"-o {folder} is a file; name a folder for the artifact")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ValueError(f"-o {folder} is not empty and holds no {MANIFEST}; name a new or an empty folder")


def warn_about_random_weights(out: Output, spec: str, weights: Path | None) -> None:
    """Say that a network of torchvision without a weights file knows nothing: Rankwise downloads none."""
    if weights is None and is_torchvision(spec):
        out.note(f"{spec} has random weights; give trained ones with --weights FILE")

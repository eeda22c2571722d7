"""The steps that `compress`, `plan` and `apply` share, with files and messages around the library's verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .constraints import check_method
from .data import Data, DataOptions
from .loading import load_data, load_example
from .models import is_torchvision, load_model
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..plan import Plan
    from ..planner import Planner
    from ..sites import Sites
    from ..statistics import Statistics
    from .figures import Timing


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
        seed: of everything random.
    """

    out: Output
    spec: str
    network: nn.Module
    sites: Sites
    data: Data | None
    test: Data | None
    stats: Path | None
    seed: int

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
    ) -> Job:
        """Load everything that the command names, before any long work begins."""
        import torch

        from ..sites import find

        torch.manual_seed(how.seed)
        if folder is not None:
            check_folder(folder)
        with out.step("loading the network"):
            network = load_model(spec, weights)
        warn_about_random_weights(out, spec, weights)
        with out.step("reading the data"):
            calibration = None if data is None else load_data(data, how, model=spec, samples=samples)
            held_out = None if test is None else load_data(test, how, model=spec, default_split="test")
        if calibration is not None:
            count = f"up to {samples}" if calibration.samples is None else f"{calibration.samples}"
            out.say(f"calibration: {count} samples of {calibration.name}, {calibration.prepared}")
        example = load_example(calibration, input_shape, how, spec)
        with out.step("finding what can be factorised"):
            sites = find(network, example)
        return cls(
            out=out,
            spec=spec,
            network=network,
            sites=sites,
            data=calibration,
            test=held_out,
            stats=stats,
            seed=how.seed,
        )

    @property
    def measured_on(self) -> Data:
        """The data that figures come from: held-out data where there is some, else the calibration samples."""
        data = self.test or self.data
        if data is None:
            raise ValueError("measuring needs data; name DATA")
        return data

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics from the file, or collected from the data and written there; once, however often they are read."""
        from ..statistics import Statistics
        from ..statistics.collect import collect

        if self.stats is not None and self.stats.exists():
            self.out.say(f"statistics: read from {self.stats}")
            stats = Statistics.load(self.stats)
            if stats.sites.fingerprint != self.sites.fingerprint:
                raise ValueError(f"--stats {self.stats} is of another network than {self.spec}; name another file")
            return stats
        if self.data is None:
            raise ValueError(
                "the input metric needs data: name DATA or an existing --stats FILE, or choose --metric weight"
            )
        stats = collect(self.network, self.data.inputs, seed=self.seed, progress=self.out.track)
        if self.stats is not None:
            stats.save(self.stats)
            self.out.say(f"statistics: written to {self.stats}")
        return stats

    def plan(self, wishes: Mapping[str, Any]) -> Plan:
        """Choose formats and ranks; `wishes` are the keyword arguments of `choose`."""
        from ..choose import choose

        source = self.sites if wishes["metric"] == "weight" else self.statistics
        return choose(self.network, source, progress=self.out.track, **wishes)

    def planner(self, wishes: Mapping[str, Any], evaluate: Any) -> Planner:
        """What makes plans for many budgets; `wishes` are keyword arguments of `choose`."""
        from ..constraints import Constraints
        from ..planner import Planner

        return Planner.of(
            self.network,
            self.sites if wishes["metric"] == "weight" else self.statistics,
            metric=wishes["metric"],
            formats=wishes["formats"],
            round_to=wishes["round_to"],
            constraints=Constraints(**{name: wishes[name] for name in ("include", "ignore", "pin", "floor", "cap")}),
            evaluate=evaluate,
            progress=self.out.track,
        )

    def edited(self, plan: Plan) -> Plan:
        """The plan with its counts brought up to date after a person edited it."""
        from ..budgets import recount

        return recount(self.network, plan, self.sites)

    def factorise(self, plan: Plan, method: str) -> nn.Module:
        """A factorised copy of the network."""
        from ..factorise import factorise

        if check_method(method) == "sequential" and self.data is None:
            raise ValueError("--method sequential runs over the data; name DATA, or choose --method one-shot")
        data = self.data.inputs if method == "sequential" and self.data else None
        stats: Statistics | Sites | None = None
        if data is None:
            stats = self.sites if plan.metric == "weight" else self.statistics
        with self.out.stages("factorising", len(plan.factorised)) as step:
            return factorise(self.network, plan, stats, data=data, seed=self.seed, step=step)


def finish(job: Job, small: nn.Module, plan: Plan, folder: Path, *, command: str, timing: Timing) -> None:
    """Write the artifact, measure it, and show what came out."""
    from ..artifact import save
    from .figures import figures_of, measure
    from .tables import figures_table, plan_table

    # Written before anything is measured: a problem with test data must not cost the work so far. The second artifact
    # takes over what is not its own, the plan.
    save(small, folder, plan=plan)
    plan.save(folder / "plan.yaml")
    data = job.measured_on
    figures = measure(job.out, {"dense": job.network, "compressed": small}, data, timing=timing)
    save(small, folder, plan=plan, figures=figures_of(figures, data))
    job.out.show(plan_table(plan, job.sites, job.out.console.width))
    job.out.say("")
    job.out.show(figures_table(figures, timing.batch))
    where = "held-out samples" if job.test else "the calibration samples themselves (name others with --test)"
    job.out.say(f"\nmeasured on {where}: {data.name}")
    job.out.say(f"artifact: {folder}  (rankwise.json, model.safetensors, plan.yaml)")
    job.out.result(
        command,
        {
            "artifact": folder,
            "plan": plan.to_dict(),
            "figures": figures,
            "measured_on": data.name,
            "held_out": job.test is not None,
            "timing": timing.document(),
            "seed": job.seed,
        },
    )


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

"""A command's session: what it loads from the named files, and what it says on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures.judging import Judging
from ..inputs.data import Data, random_data
from ..metrics import METRICS, FitMetric
from .loading import load_network
from .options.choosing import Factorising
from .options.data import Calibration, Network
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..evaluate import Measure, Trials
    from ..formats import Format
    from ..inputs.importance import Selection
    from ..inputs.statistics import StatisticsFile
    from ..network.sites import Sites
    from ..plan import Plan
    from ..planning.wishes import Asked
    from ..running.seen import Seen
    from ..session import Session
    from ..work import Work


@dataclass(frozen=True, kw_only=True)
class Job:
    """A session, calibration data and held-out data if there are any, and the data that searches were judged on."""

    out: Output
    session: Session
    data: Data | None
    test: Data | None
    file: StatisticsFile
    batch: int = 64
    judging: Judging = field(default_factory=Judging)
    searched: list[Data] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        out: Output,
        named: Network,
        data: Calibration,
        seed: int,
        *,
        judging: Judging,
        wishes: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        way: Factorising | None = None,
        work: Work | None = None,
        gradients: bool = False,
    ) -> Job:
        """Load everything that the command names, before any long work begins.

        `wishes` are arguments of `choose`, the artifact will be written to `folder`, and `gradients` asks for
        statistics of gradients whatever the wishes are.
        """
        from ..inputs.loading import load_example
        from ..inputs.statistics import StatisticsFile
        from ..planning.wishes import Asked, check_wishes
        from ..session import Session
        from ..statistics.sampling import Sampling
        from ..work import STATISTICS, Work

        way = way or Factorising()
        network = load_network(out, named, seed, folder, way.fold)
        asked = Asked.of(**(wishes or {}))
        check_wishes(network, asked)
        calibration, held_out = _read(out, data, network, named.model, seed)
        example = load_example(calibration or held_out, data.input_shape, data.how(seed), named.model, network)
        # Times are of single layers.
        joint = named.is_transformer and not asked.needs_times
        sites = _found(out, network, example, asked, joint)
        work = work or Work()
        file = StatisticsFile.of(data.stats, sites.fingerprint, named.model, collected=STATISTICS in work)
        session = Session(
            model=network,
            sites=sites,
            example=example,
            data=None if calibration is None else calibration.inputs,
            method=_method(way.method, calibration, bool(sites.joint)),
            gradients=gradients or asked.needs_gradients,
            given=file.read if file.stored or calibration is None else None,
            collected=file.write,
            sampling=Sampling(seed=seed),
            work=work,
            progress=out.track,
            name="DATA" if calibration is None else calibration.name,
        )
        job = cls(
            out=out, session=session, data=calibration, test=held_out, file=file, batch=data.batch, judging=judging
        )
        judging.check(network, job.measured_on)
        return job

    @property
    def measured_on(self) -> Data:
        """The data that figures come from: held-out data, else calibration samples, else random inputs."""
        return self.test or self.data or random_data(self.session.example, self.batch)

    def begin(self, options: Mapping[str, Any]) -> None:
        """Record MODEL, DATA and the options that decide the result in the checkpoint; refuse one of another run."""
        from ..files import digest, sha256_of

        session, path = self.session, self.file.path
        if session.work.folder is None:
            return
        used = {
            "seed": session.sampling.seed,
            "example": digest(session.example, loose=True),
            "statistics": sha256_of(path) if self.file.stored and path else None,
        }
        session.work.begin(session.model, None if self.data is None else self.data.pairs, {**options, **used})

    def seen(self) -> dict[str, Seen]:
        """Samples used so far, by use; which ones calibrated is not known if a statistics file was read."""
        from ..running.seen import Seen

        own = [] if self.data is None else [self.data]
        used = {"search": [*self.searched, *(own if self.file.was_read else [])]}
        used |= {} if self.file.was_read else {"calibration": own}
        found = {use: Seen.of(chain.from_iterable(data.inputs for data in each)) for use, each in used.items()}
        return {use: each for use, each in found.items() if each.samples or use == "calibration"}

    def _check_share(self, shrink: float | str | None, metric: FitMetric) -> None:
        """Refuse `--shrink auto` if there is nothing to choose a share by."""
        if shrink == "auto" and (not self.file.stored or self.data is None or not metric.shrinkable):
            raise ValueError(
                "--shrink auto chooses on DATA how far to trust statistics of other data: name DATA and an existing "
                "--stats FILE, or give a number from 0 to 1"
            )

    def plan(self, wishes: Mapping[str, Any], shrink: float | str | None, where: Mapping[str, Any], batch: int) -> Plan:
        """Choose formats and ranks as `Session.plan` does; `where` is from `Timed.wishes`, for `batch` samples."""
        self._check_share(shrink, METRICS[wishes["metric"]])
        plan = self.session.plan({**wishes, **self.times(where, batch), **self.tries(wishes)}, shrink)
        if plan.latency is not None:
            self.out.say(f"time to expect: {plan.latency.share:.2f} of the dense network's; {plan.latency}")
        return plan

    def plans(
        self,
        wishes: Mapping[str, Any],
        keeps: Sequence[Mapping[str, float]],
        where: Mapping[str, Any],
        batch: int,
        *,
        nested: bool,
    ) -> list[Plan]:
        """One plan for every budget, each inside the one before if `nested`; the rest is as for `plan`."""
        return self.session.plans({**wishes, **self.times(where, batch), **self.tries(wishes)}, keeps, nested)

    def shrunk(self, plan: Plan, shrink: float | str | None) -> Plan:
        """An existing plan with the share of the weight metric that its fits shall have."""
        self._check_share(shrink, plan.fit_metric)
        return replace(plan, shrink=self.session.share_for(plan, shrink))

    def times(self, where: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """The arguments engine, threads and, if plans are measured, example of `choose`."""
        arguments = {name: value for name, value in where.items() if name != "timed"}
        return {**arguments, "example": self.measured_on.example(batch)} if where["timed"] else arguments

    def tries(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments `evaluate` and `drop` of `choose`, if the wishes need them; both need data."""
        found: dict[str, Any] = {}
        network = self.session.model
        if wishes["rule"].needs_evaluate:
            if self.data is None:
                raise ValueError(f"--rule {wishes['rule'].name} tries plans on data; name DATA")
            judge = self.judging.for_plans(self.out, network, self.data)
            batches = self.data.pairs if judge.judge is not None and self.data.labelled else self.data.inputs
            # Many plans are tried: one-shot fits take a second where sequential ones run both networks over the data.
            found["evaluate"] = self.trials(batches, judge, "one-shot")
        if wishes.get("target_drop") is not None:
            data = self.measured_on
            if not data.real:
                raise ValueError("--target-drop measures on data; name --test or DATA")
            judged = self.judging.judged(self.out, network, data)
            judge = judged.measures[0]
            own = "" if self.test else ", the calibration samples themselves (name others with --test)"
            self.out.say(f"target: at most {judge.points(wishes['target_drop'])} lost on {data.name}{own}")
            self.out.say(f"judged by {judge.title}, {judge.direction}")
            self.searched.append(data)
            found["drop"] = self.trials(judged.batches(judge, data), judge)
        return found

    def trials(self, batches: Iterable[Any], measure: Measure, method: str | None = None) -> Trials:
        """What tries plans on batches by a measure; `method` is the session's by default."""
        from ..evaluate import Trials

        return Trials(self.session.model, partial(self.session.trial, method=method), batches, measure)

    def factorise(self, plan: Plan, importance: Selection | None = None) -> nn.Module:
        """A factorised copy of the network; `importance` says how sparse low rank selects neurons."""
        formats = None if importance is None else self._selecting(plan, importance)
        with self.out.stages("factorising", len(plan.factorised)) as step:
            return self.session.factorise(plan, formats=formats, step=step)

    def _selecting(self, plan: Plan, selection: Selection) -> Mapping[str, Format]:
        from ..importance import self_labelled

        data, session = None, self.session
        if selection.needs_loss:
            if self.data is None:
                raise ValueError(f"--importance {selection.criterion} measures the loss on data; name DATA")
            labelled = self.judging.judged(self.out, session.model, self.data).labelled
            data = self.data.pairs if labelled else self_labelled(session.model, self.data.inputs)
            whose = "the labels" if labelled else "its own answers"
            self.out.say(f"importance: the loss of {whose} on {self.data.name}")
        source = session.statistics if selection.criterion == "activation" else session.sites
        return selection.formats(session.model, plan, source, data)


def _method(method: str, data: Data | None, joint: bool) -> str:
    """The method that `--method` stands for; without DATA only one-shot is possible.

    In transformers sequential fits follow the few tokens that they see: one-shot fits are better on other text.
    """
    if method == "sequential" and data is None:
        raise ValueError("--method sequential runs over the data; name DATA, or choose --method one-shot")
    if method == "auto":
        return "one-shot" if data is None or joint else "sequential"
    return method


def _read(out: Output, data: Calibration, network: nn.Module, model: str, seed: int) -> tuple[Data | None, Data | None]:
    """Calibration and held-out data."""
    calibration = held_out = None
    with out.step("reading the data"):
        if data.data is not None:
            calibration = data.load(data.data, network, model, seed=seed, samples=data.count)
        if data.test is not None:
            held_out = data.load(data.test, network, model, seed=seed, split="test")
    if calibration is not None:
        count = f"up to {data.count}" if calibration.samples is None else f"{calibration.samples}"
        out.say(f"calibration: {count} samples of {calibration.name}, {calibration.prepared}")
    return calibration, held_out


def _found(out: Output, network: nn.Module, example: Any, asked: Asked, joint: bool) -> Sites:
    """What can be factorised; a ValueError if no plan of it can meet the budgets."""
    from ..network.find import find
    from ..planning.unmet import check_budgets

    with out.step("finding what can be factorised"):
        sites = find(network, example, joint=joint)
    check_budgets(network, sites, asked.keep, asked.constraints)
    return sites

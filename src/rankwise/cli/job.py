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
from .loading import load_network, with_layers
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
    from ..ranks import Rule
    from ..running.seen import Seen
    from ..session import Session
    from ..work import Work


@dataclass(frozen=True, kw_only=True)
class Job:
    """A session, the data it uses as far as there is any, and the data that searches were judged on.

    Attributes:
        dense: the network as it was loaded; figures compare with it, not with one whose projections are layers.
        data: calibration samples.
        further: text for fits alone.
        test: held-out data for the figures.
    """

    out: Output
    session: Session
    dense: nn.Module
    data: Data | None
    test: Data | None
    file: StatisticsFile
    further: Data | None = None
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
        joint: bool | None = None,
    ) -> Job:
        """Load everything that the command names, before any long work begins.

        `wishes` are arguments of `choose`, the artifact will be written to `folder`, and `gradients` asks for
        statistics of gradients whatever the wishes are. `joint` is by default that of a transformer.
        """
        from ..inputs.loading import load_example
        from ..inputs.statistics import StatisticsFile
        from ..planning.wishes import Asked, check_wishes
        from ..session import Session
        from ..statistics.sampling import Sampling
        from ..work import STATISTICS, Work

        dense = network = load_network(out, named, seed, folder, way is not None and way.fold)
        asked = Asked.of(**(wishes or {}))
        check_wishes(network, asked)
        read: dict[str, Any] = _read(out, data, way, network, named.model, seed)
        calibration = read["data"]
        example = load_example(calibration or read["test"], data.input_shape, data.how(seed), named.model, network)
        # Times are of single layers.
        joint = (
            (named.is_transformer or asked.constraints.uniform) and not asked.needs_times if joint is None else joint
        )
        network, sites = _found(out, network, example, asked, joint=joint)
        work = work or Work()
        file = StatisticsFile.of(data.stats, sites.fingerprint, named.model, collected=STATISTICS in work)
        session = Session(
            model=network,
            sites=sites,
            example=example,
            data=None if calibration is None else calibration.inputs,
            **_fitted(way, calibration, read["further"], bool(sites.joint)),
            gradients=asked.gradients or gradients,
            next_token=asked.rule.needs_loss,
            given=file.read if file.stored or calibration is None else None,
            collected=file.write,
            sampling=Sampling(seed=seed),
            work=work,
            progress=out.track,
            name="DATA" if calibration is None else calibration.name,
        )
        job = cls(out=out, session=session, dense=dense, **read, file=file, batch=data.batch, judging=judging)
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
            **({} if self.further is None else {"refit": digest(list(self.further.inputs), loose=True)}),
        }
        session.work.begin(session.model, None if self.data is None else self.data.pairs, {**options, **used})

    def seen(self) -> dict[str, Seen]:
        """Samples used so far, by use; which ones calibrated is not known if a statistics file was read."""
        from ..running.seen import Seen

        own = [data for data in (self.data, self.further) if data is not None]
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
            judge = self._judge_of_plans(wishes["rule"], self.data)
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

    def _judge_of_plans(self, rule: Rule, data: Data) -> Measure:
        """What a rule's trials are judged by on data: what the user asked for, else what the rule publishes."""
        from ..evaluate import predicts_next, regularised_perplexity

        network, asked = self.session.model, self.judging.own or self.judging.name
        if rule.regularised and not asked and predicts_next(network, next(iter(data.inputs))):
            return regularised_perplexity(network)
        return self.judging.for_plans(self.out, network, data)

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


def _fitted(way: Factorising | None, data: Data | None, further: Data | None, joint: bool) -> dict[str, Any]:
    """How a session fits: the method that `--method` stands for, and the further rows.

    Without DATA only one-shot is possible.
    """
    from ..factorisation.further import Further
    from ..session import method_for

    method = "auto" if way is None else way.method
    if method == "sequential" and data is None:
        raise ValueError("--method sequential runs over the data; name DATA, or choose --method one-shot")
    # One batch cannot both be fitted to and judge.
    judged = further is not None and len(list(further.inputs)) > 1
    method = "one-shot" if data is None else method_for(method, joint=joint, judged=judged)
    return {
        "method": method,
        "further": None if further is None else Further(further.inputs, judges=method == "auto"),
    }


def _read(
    out: Output, data: Calibration, way: Factorising | None, network: nn.Module, model: str, seed: int
) -> dict[str, Data | None]:
    """Calibration, further and held-out data, as `Job` names them; plans alone need none beyond."""
    calibration = held_out = further = None
    with out.step("reading the data"):
        if data.data is not None:
            calibration = data.load(data.data, network, model, seed=seed, samples=data.count)
        if way is not None:
            further = data.further(way.refit_samples, calibration, network, model, seed)
        if data.test is not None:
            held_out = data.load(data.test, network, model, seed=seed, split="test")
    if calibration is not None:
        count = f"up to {data.count}" if calibration.samples is None else f"{calibration.samples}"
        out.say(f"calibration: {count} samples of {calibration.name}, {calibration.prepared}")
    return {"data": calibration, "further": further, "test": held_out}


def _found(out: Output, network: nn.Module, example: Any, asked: Asked, *, joint: bool) -> tuple[nn.Module, Sites]:
    """The network with layers in place of fused weights, and what can be factorised.

    `joint` is for budgets of counts: times are of single layers. A ValueError if no plan can meet the budgets.
    """
    from ..network.find import find
    from ..planning.unmet import check_budgets

    network = with_layers(out, network, example)
    with out.step("finding what can be factorised"):
        sites = find(network, example, joint=joint)
    check_budgets(network, sites, asked.keep, asked.constraints)
    return network, sites

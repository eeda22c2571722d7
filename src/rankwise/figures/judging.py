"""What judges networks: what `--metric` and `--classes-dim` say, else what fits outputs and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..inputs.data import Data
from ..names import METRICS, check_name
from .teller import Teller, tried

if TYPE_CHECKING:
    from torch import nn

    from ..evaluate import Measure, Outputs

NAMES = ("accuracy", "perplexity", "agreement", "divergence", "relative_error", "cosine", "detections")
DIRECTIONS = {"higher": True, "lower": False}
TAKEN = ("params", "macs", "bytes", "top1", "top5", "measures")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures that fit the outputs of a network on some data.

    Args:
        outputs: the dense network's.
        measures: the one that judges comes first.
        labelled: whether the data's labels are classes of these outputs.
        own: whether the first measure is the user's function.
    """

    outputs: Outputs
    measures: tuple[Measure, ...]
    labelled: bool
    own: bool

    @property
    def comparison(self) -> Measure:
        """The measure that judges without labels: the user's own, or a comparison with the dense network."""
        return next(each for each in self.measures if each.key != "accuracy")

    def batches(self, measure: Measure, data: Data) -> Iterable[Any]:
        """The batches that a measure runs over."""
        return data.pairs if measure.judge is not None and data.labelled else data.inputs


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What the user asked for: the metric of the fits, a function or a measure's name, the dimension of the classes."""

    fit: str = "input"
    own: Measure | None = None
    name: str | None = None
    classes_dim: int | None = None

    @classmethod
    def of(cls, metric: Iterable[str] | None, classes_dim: int | None, fits: bool = True) -> Judging:
        """The values of `--metric` and `--classes-dim`.

        Each `metric` is the metric of the fits (if the command fits anything), the name of a measure, or
        `FILE.py:FUNCTION[:lower]`; one of a kind.
        """
        said: dict[str, Any] = {}
        for text in metric or ():
            key = "fit" if fits and text in METRICS else "name" if text in NAMES else "own"
            rivals = {"fit"} if key == "fit" else {"name", "own"}
            if rivals & said.keys():
                what = "metric of the fits" if key == "fit" else "measure that judges"
                raise ValueError(f"--metric {text!r}: there is a {what} already; keep one of them")
            said[key] = _own(text, fits) if key == "own" else text
        return cls(classes_dim=classes_dim, **said)

    def check(self, network: nn.Module, data: Data) -> None:
        """Try the user's function on the first batch, before any long work; a ValueError if it fails or has no data."""
        if self.own is None and self.name is None:
            return
        if not data.real:
            raise ValueError("--metric judges networks on data; name --test or DATA")
        if self.own is not None:
            inputs, labels = next(iter(data.pairs))
            self.own(network, network, [(inputs, labels) if data.labelled else inputs])

    def judged(self, out: Teller, network: nn.Module, data: Data) -> Measures:
        """The measures that fit a network on data; a note says why labels cannot be used."""
        from ..evaluate import Outputs, measure, measures_for, predicts_next

        inputs, labels = next(iter(data.pairs))
        outputs = Outputs.of(network, inputs, labels, classes_dim=self.classes_dim)
        labelled = self._labelled(out, network, data, outputs, inputs, labels)
        if self.name == "accuracy" and not labelled:
            raise ValueError(
                f"--metric accuracy needs labels of the network's classes, which {data.name} does not have"
            )
        measures = (measure(self.name, outputs),) if self.name else tuple(measures_for(outputs, labelled))
        if not self.name and data.real and predicts_next(network, inputs):
            measures = (measure("perplexity", outputs), *measures)
        if self.own is not None:
            measures = (self.own, *(each for each in measures if each.key != self.own.key))
        return Measures(outputs=outputs, measures=measures, labelled=labelled, own=self.own is not None)

    def for_plans(self, out: Teller, network: nn.Module, data: Data) -> Measure:
        """The measure for rules that try plans: the user's own, else one that grows as the errors do."""
        from ..evaluate import measure_of_plans

        judged = self.judged(out, network, data)
        return judged.measures[0] if judged.own or self.name else measure_of_plans(judged.outputs)

    def _labelled(
        self, out: Teller, network: nn.Module, data: Data, outputs: Outputs, inputs: Any, labels: Any
    ) -> bool:
        from ..evaluate import accuracy

        if not data.labelled:
            return False
        # Labels counted from folders are right only if every class has its folder.
        if data.classes is not None and outputs.classes != data.classes:
            outs = f"{outputs.classes} outputs" if outputs.classes else f"outputs that are {outputs}"
            out.note(
                f"accuracy was not measured: {data.name} has {data.classes} class folders, the network has {outs}, so "
                "the order of the folders does not give their class numbers"
            )
            return False
        try:
            if not outputs.is_choice:
                raise ValueError(f"the outputs are taken as {outputs}: {outputs.why}")
            accuracy(network, [(inputs, labels)], k=(1,), outputs=outputs)
        except ValueError as error:
            out.note(f"accuracy was not measured ({data.labels}): {error}")
            return False
        return True


def figures_by(
    out: Teller, networks: Mapping[str, nn.Module], data: Data, judging: Judging
) -> dict[str, dict[str, Any]]:
    """Judge networks by the measures that fit the first of them; what cannot be measured is absent, with a note.

    Returns:
        Values by network and key; the last network's also hold `measures`, which describes them.
    """
    from ..evaluate import accuracy, compared

    dense, *others = networks
    found: dict[str, dict[str, Any]] = {name: {} for name in networks}
    judged = tried(out, "what the outputs are", partial(judging.judged, out, networks[dense], data))
    if judged is None:
        return found
    told = {each.key: each.document() for each in judged.measures}
    for name, network in networks.items():
        for each in judged.measures:
            if each.key == "accuracy":
                pairs = out.track(data.pairs, f"accuracy, {name}")
                top = tried(out, "accuracy", partial(accuracy, network, pairs, outputs=judged.outputs)) or {}
                # With five classes or fewer, the best five always include the label.
                classes = judged.outputs.classes or 2
                found[name] |= {key: value for key, value in top.items() if int(key.removeprefix("top")) < classes}
            elif each.judge is not None:
                with out.step(f"measuring {each.key}, {name}"):
                    found[name][each.key] = each(network, networks[dense], judged.batches(each, data))
    for name in others:
        inputs = out.track(data.inputs, "beside the dense network")
        beside = [each for each in judged.measures if each.tally is not None]
        run = partial(compared, networks[name], networks[dense], inputs, beside)
        found[name] |= tried(out, " and ".join(each.key for each in beside), run) or {} if beside else {}
    last = found[others[-1] if others else dense]
    there = {"accuracy": "top1"}
    last["measures"] = {key: value for key, value in told.items() if there.get(key, key) in last}
    return found


def _own(text: str, fits: bool) -> Measure:
    spec, _, direction = text.rpartition(":")
    if direction not in DIRECTIONS or not spec:
        spec, direction = text, ""
    if ".py:" not in spec:
        known = (*(METRICS if fits else ()), *NAMES)
        check_name("metric", text, (*known, "FILE.py:FUNCTION", "FILE.py:FUNCTION:lower"), f"--metric {text!r}: ")
    from ..evaluate import Measure
    from ..inputs.models import load_function

    function = load_function(spec, "--metric", "the name of a metric")
    name = spec.rpartition(":")[2]
    if name in TAKEN:
        raise ValueError(f"--metric {text!r}: there is a figure {name!r} already; rename the function")
    return Measure.own(function, higher=DIRECTIONS.get(direction), name=name)

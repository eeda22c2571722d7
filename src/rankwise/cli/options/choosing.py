"""Options of budgets and constraints, and of carrying out a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from ...names import METHOD_SETS, METRICS, STORAGES
from ..parsing import (
    check_names,
    parse_budgets,
    parse_floor,
    parse_formats,
    parse_pins,
    parse_ranks,
    parse_round_to,
    parse_rule,
    parse_shrink,
)
from .base import budget, output, plain
from .data import REFITTED
from .measuring import JUDGE_HELP, ClassesDim

if TYPE_CHECKING:
    from ...figures.judging import Judging
    from ...planning.named import NamedMethod

METHODS = ("auto", "sequential", "one-shot")
Fold = Annotated[bool, plain("--fold", "Fold batch norms into the layers before them. The artifact remembers it.")]
Ignore = Annotated[list[str] | None, budget("--ignore PATTERN", "Leave these layers dense: conv1, head.*, re:^fc.")]
Include = Annotated[
    list[str] | None,
    budget(
        "--include PATTERN",
        "Touch only these layers. Embeddings and heads of language models have to be named: '*' and lm_head.",
    ),
]
Rule = Annotated[
    str | None,
    budget(
        "--rule NAME",
        "Rule that chooses ranks, with settings after a colon (see docs/rules.md); by default fisher for hf: models, "
        "else knapsack.",
    ),
]
Keep = Annotated[
    list[str] | None,
    budget(
        "--keep WHAT=HOW MUCH",
        "Budget in macs, params, linear (params of the layers that may be factorised), bytes or latency: macs=0.5, "
        "macs=50%, params=1.5M, latency=0.6, latency=8ms; repeated, all are met.",
        shown=False,
    ),
]
Shrink = Annotated[
    str | None,
    budget(
        "--shrink SHARE",
        "Share of the weight metric, 0 to 1, for statistics of other data; auto: chosen on DATA as held-out "
        "samples, the default for one-shot from a file with DATA.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the network may cost."""

    keep: Keep = None
    target_drop: Annotated[
        float | None,
        budget(
            "--target-drop POINTS",
            "Find the smallest network that loses no more: points of accuracy with labels, else points of agreement, "
            "hundredths of a relative error or a cosine, or the unit of --metric.",
        ),
    ] = None
    minimise: Annotated[
        str,
        budget(
            "--minimise WHAT",
            "What --target-drop minimises: macs, params, linear, bytes or latency; --keep then adds limits.",
        ),
    ] = "macs"


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How formats and ranks are chosen, whatever the budget."""

    method_set: Annotated[
        str | None,
        budget(
            "--method-set NAME",
            "A method of the literature, one-shot, with its metric, rule and formats (see docs/transformers.md): "
            f"{', '.join(METHOD_SETS)}.",
        ),
    ] = None
    rule: Rule = None
    floor_rule: Annotated[
        str | None,
        budget(
            "--floor-rule NAME", "Rule for the least rank of every factorised layer: stable_rank, energy:share=0.5."
        ),
    ] = None
    formats: Annotated[
        str | None,
        budget(
            "--formats NAME,NAME",
            "Formats to choose from, with settings after a colon (stt:slices=4), or auto for all; by default svd, "
            "spatial_svd, tucker2, and what suits the --engine (see `rankwise formats --for ENGINE`). A layer may "
            "always stay dense.",
        ),
    ] = None
    metric: Annotated[
        list[str] | None,
        budget(
            "--metric NAME",
            "Metric of the fits: input (default), error of the layer's output on the data; diagonal: the same "
            "without covariances; fisher: outputs weighted by the gradients of the loss; without_bias: no new biases; "
            f"weight: error of the weight, no data needed. Given once more, {JUDGE_HELP}",
            shown=False,
        ),
    ] = None
    classes_dim: ClassesDim = None
    ignore: Ignore = None
    include: Include = None
    pin: Annotated[
        list[str] | None,
        budget(
            "--pin PATTERN=FORMAT:RANK",
            "Fix a layer: layer1.0.conv1=tucker2:16,16, fc=svd:64, fc=stt:slices=4:8,8,4 (settings before ranks), "
            "fc=slr:k=64,sr=0.5,rr=0.5, conv1=dense.",
        ),
    ] = None
    floor: Annotated[
        list[str] | None, budget("--floor PATTERN=RANK", "Lowest rank, or fraction of full rank: layer4.*=32.")
    ] = None
    cap: Annotated[
        list[str] | None, budget("--cap PATTERN=RANK", "Highest rank, or fraction of full rank: layer1.*=16.")
    ] = None
    tie: Annotated[
        list[str] | None,
        budget(
            "--tie PATTERN",
            "Same format and ranks for all layers that match: layer1.*.conv1; repeated, each is a group.",
        ),
    ] = None
    uniform: Annotated[
        bool,
        budget(
            "--uniform",
            "Leave out hidden units alone, the same number everywhere: a transformer stays an ordinary one of its "
            "family, which loads with nothing installed (`rankwise export --to transformers`).",
        ),
    ] = False
    round_to: Annotated[
        str,
        budget(
            "--round-to N",
            "Make ranks multiples of N; auto: what the --engine computes at once, measured, finer in narrow layers; "
            "with --engine none 8 in large layers, 1 in small ones.",
        ),
    ] = "auto"
    shrink: Shrink = None

    def judging(self) -> Judging:
        """What judges networks, and the metric of the fits."""
        from ...figures.judging import Judging

        return Judging.of(self.metric, self.classes_dim)

    def share(self) -> float | str | None:
        """`--shrink`."""
        return parse_shrink(self.shrink)

    @property
    def named(self) -> NamedMethod | None:
        """The method of the literature, if one is asked for; a ValueError for options that it decides itself."""
        from ...planning.named import get_named

        if self.method_set is None:
            return None
        found = get_named(self.method_set, f"--method-set {self.method_set!r}: ")
        fits = [text for text in self.metric or () if text in METRICS]
        said = {"--rule": self.rule, "--formats": self.formats, "--metric": fits}
        for option, value in said.items():
            if value:
                raise ValueError(f"--method-set {found.name} has its own {option}; leave out one of them")
        return found

    @property
    def joint(self) -> bool | None:
        """Whether layers that belong together are one site, where the method decides it."""
        return None if self.named is None else self.named.joint

    def wishes(self, metric: str, rule: str = "knapsack") -> dict[str, Any]:
        """The keyword arguments of `rankwise.choose`; `metric` is that of the fits, `rule` the one unless named."""
        named = self.named
        rule = self.rule or (rule if named is None else named.rule)
        names = None if self.formats is None else parse_formats(self.formats)
        round_to = parse_round_to(self.round_to)
        if named is not None:
            metric, names = named.metric, named.formats
            round_to = named.round_to if round_to == "auto" else round_to
        pins = parse_pins(self.pin)
        check_names(rule, self.floor_rule, names or (), pins)
        if self.uniform and "input" not in (self.metric or ()):
            metric = "without_bias" if metric == "input" else metric
        return {
            "rule": parse_rule(rule),
            "floor_rule": parse_floor(self.floor_rule),
            "formats": names,
            "metric": metric,
            "ignore": tuple(self.ignore or ()),
            "include": tuple(self.include or ("*",)),
            "pin": pins,
            "floor": parse_ranks(self.floor, "--floor"),
            "cap": parse_ranks(self.cap, "--cap"),
            "tie": tuple(self.tie or ()),
            "uniform": self.uniform,
            "round_to": round_to,
        }


@dataclass(frozen=True, kw_only=True)
class Budget(Choosing, Limits):
    """What the network may cost, and how formats and ranks are chosen for it."""

    def wishes(self, metric: str, rule: str = "knapsack") -> dict[str, Any]:
        """As `Choosing.wishes`; refuses a rule without the budget that it needs, and options without effect."""
        keep = parse_budgets(self.keep)
        wishes = super().wishes(metric, rule)
        wishes |= {"keep": keep, "target_drop": self.target_drop, "minimise": self.minimise}
        if keep is None and self.target_drop is None and wishes["rule"].needs_budget:
            raise ValueError(
                f"--rule {wishes['rule'].name} needs a budget: --keep macs=0.5, or --target-drop 1.0 for the smallest "
                f"network that loses no more"
            )
        if self.target_drop is None and self.minimise != "macs":
            raise ValueError(
                f"--minimise {self.minimise} has no effect without --target-drop; a budget is "
                f"--keep {self.minimise}=0.5"
            )
        return wishes


@dataclass(frozen=True, kw_only=True)
class Factorising:
    """How a plan is carried out and stored."""

    method: Annotated[
        str,
        budget(
            "--method NAME",
            "sequential: each layer repairs the errors before it; one-shot: all at once from the statistics; "
            "auto: sequential where there is DATA; for hf: models one-shot, unless there is much text and "
            "sequential is nearer to the dense network on text held out.",
        ),
    ] = "auto"
    refit_samples: Annotated[
        int | None,
        budget(
            "--refit-samples N",
            "Rows of text beyond the calibration samples, for fits alone: the last factor of each layer is fitted once "
            f"more on them, and every eighth batch judges between methods. By default {REFITTED}; 0 for none.",
        ),
    ] = None
    importance: Annotated[
        str | None,
        budget(
            "--importance NAME",
            "Importance by which slr selects neurons: weight, activation, cost (first-order change of the loss on "
            "labels, or on the network's own answers), curvature (second-order, exact where it is largest); :published "
            "keeps the factors of the SVD. By default what they add to the layer's output.",
        ),
    ] = None
    fold: Fold = False
    storage: Annotated[
        str,
        output(
            "--storage NAME",
            "Storage of the weights: plain; entropy: a smaller file with the same bits; int8+entropy: rounded to "
            "8 bits first.",
        ),
    ] = "plain"

    def one_shot(self) -> Factorising:
        """The same, one-shot as the methods of the literature are; a ValueError if another way is asked for."""
        if self.method == "sequential":
            raise ValueError("--method-set is for one-shot fits; leave out --method sequential")
        return replace(self, method="one-shot")

    def check(self) -> None:
        """Refuse an unknown method or storage before any long work begins."""
        for option, value, known in (("method", self.method, METHODS), ("storage", self.storage, STORAGES)):
            if value not in known:
                raise ValueError(f"--{option} {value!r} is not one of {', '.join(known)}")

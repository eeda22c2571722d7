"""From curves, budgets, constraints and a rule to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ..network.sites import Sites
from ..plan import Plan
from ..running.verbs import verb
from ..statistics import Statistics
from .planner import Planner
from .refine import refined
from .target import smallest
from .wishes import Asked, Wishes

if TYPE_CHECKING:
    from typing_extensions import Unpack


@verb
def choose(model: nn.Module, source: Statistics | Sites, **wishes: Unpack[Wishes]) -> Plan:
    """Choose format and ranks of every site by a rule; the default keeps as much as possible of all layers together.

    `max prod_i (1 - error_i(option_i))  subject to  sum_i cost_i(option_i) + cost of all the rest <= budget`

    Args:
        model: the dense network.
        source: its statistics, or only its sites for `metric="weight"`.
        keep: budgets, all met: "params", "macs", "bytes", "latency", each with a fraction of the dense count (a float
            up to 1) or a number (for latency a time, "8ms"). Some rules need no budget.
        rule: how ranks are chosen: a name of `RULES`, with settings after a colon ("energy:share=0.99"), or a `Rule`.
        floor_rule: a rule for the least rank of every factorised site, for instance "stable_rank".
        evaluate: returns the loss of a plan, 0 for the dense network, such as `evaluate.Trials`; for rules that try
            plans.
        target_drop: choose the smallest network that loses no more than this, in the unit of `drop`.
        drop: measures the loss of a plan on held-out data, for `target_drop`; such as `evaluate.Trials` of "agreement"
            (percentage points).
        minimise: "params", "macs", "bytes" or "latency": what `target_drop` makes smallest; `keep` holds further
            budgets.
        formats: formats to choose from for each site: names, objects, or objects by name; "auto" for all. By default
            those of `planning.defaults.formats_for(engine, site)`: svd, spatial_svd, tucker2, and for engines where
            depthwise layers are quick cp3 in narrow layers.
        metric: "input" (error of each site's output), "diagonal" (the same without covariances of the input), "fisher"
            (the same with outputs weighted by the gradients of the loss; needs statistics with gradients),
            "without_bias" (as input, and layers without a bias are given none) or "weight"; or another one of
            `rankwise.metrics.METRICS`.
        shrink: share of the weight metric, 0 to 1, for statistics of other data; `choose_shrinkage` finds it, and the
            plan keeps it for `factorise`. Given curves must be made with the same share.
        include: patterns of the sites that may be factorised (globs, or regular expressions after "re:"). Embeddings
            and heads of language models stay dense unless a pattern other than "*" matches them: `["*", "lm_head"]`.
        ignore: patterns of sites that stay dense.
        pin: pattern to "dense", "format:rank[,rank]" or (format, ranks), with the format's name or object; or to
            "slr:k=16,sr=0.5,rr=0.5", for formats with such parameters.
        floor: pattern to the least rank, a number or a fraction of the largest.
        cap: pattern to the largest rank, likewise; a capped site cannot stay dense unless it is ignored.
        tie: patterns; all sites that match one get the same format and ranks. They must have one shape.
        uniform: only hidden units leave (of sites found with joint=True), and of all hidden layers of one width the
            same number, so that a transformer stays an ordinary one of its family. The default metric is then
            "without_bias".
        round_to: ranks are multiples of this; "auto", the default, is what the engine computes at once, measured on
            this machine (16 channels in onnxruntime with AVX-512), and finer in narrow layers; without an engine 8 if
            the smaller side is at least 128, else 1.
        curves: result of `profile`, to try several budgets without computing it again; it fixes `formats` and
            `round_to`.
        done: as for `profile`, without given curves.
        refine: fit formats whose curves are estimates thoroughly near the ranks that the budget asks for, and decide by
            those errors; formats with a closed form need no such fits.
        example: an input of the batch size that latency is measured with, as for `find`; a latency budget needs it.
            With any other budget the plan then also saves time, as far as the budget allows, and tells how much.
        engine: where the network will run: "torch", "compile", "onnxruntime", "executorch", "cuda",
            "roofline:FILE.yaml", or "auto": onnxruntime if it is installed, else torch (`latency.at_hand`). Formats and
            ranks fit it. By default torch for a latency budget, and nothing fits an engine otherwise.
        threads: CPU threads of the engine.
        progress: wraps the sites, for a progress bar.

    Returns:
        The plan; its counts are those of the network that `factorise` builds.

    Raises:
        TypeError: for an argument that does not exist.
        ImportError: for an engine that is not installed.
        ValueError: for a budget that cannot be met (with the least possible), an unknown rule or pattern (with near
            names), contradicting constraints, an unknown format or metric, a rule that lacks what it needs or does not
            apply to a format, a share outside 0 to 1, or curves of another network or metric.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> plan = choose(model, rw.find(model, torch.randn(1, 64)), keep={"params": 0.5}, metric="weight")
        >>> plan.planned["params"] <= 0.5 * plan.dense["params"]
        True
    """
    asked = Asked.of(**wishes)
    asked.check(model)
    planner, request = Planner.asked(model, source, asked), asked.request
    if asked.target_drop is None or asked.drop is None:
        if asked.keep and asked.refine:
            planner = refined(planner, [request], asked.progress)
        return planner.plan(request)
    if asked.refine:
        middle = (1 + planner.least(asked.minimise, asked.keep)) / 2
        planner = refined(planner, [replace(request, keep={**request.amounts, asked.minimise: middle})], asked.progress)
    return smallest(planner, request, asked.drop, asked.target_drop, minimise=asked.minimise)

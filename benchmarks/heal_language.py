"""Language models healed without labels: quality against minutes, on text that was learned from and on other text.

    python -m benchmarks.heal_language [--models stories260k smollm2] [--keep 0.8] [--rows 100] [--minutes 10]
        [--method auto] [--blocks SHARE] [--rate R] [--batch N] [--temperature T] [--artifact FOLDER] [--tokens 8192]
        [--quick] [--seed N] [--json FILE]

A network is compressed with hidden units and the rule fisher, refitted on further rows of text, and taught by the dense
network on the same rows. `ratio` and `other` are as in benchmarks.language: perplexity over that of the dense network,
on text of the same kind and of another; `held_out` is the divergence from the dense network on a tenth of the rows,
which alone chooses the state. Rows of a run are printed with the minutes of training by the clock, and the minutes that
the processor worked, which on a busy machine are fewer. With --artifact a network that was compressed before is healed.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.language_tasks import TASKS, Task
from rankwise.evaluate import divergence
from rankwise.training import Look, trainable

COLUMNS = ("model", "step", "steps", "minutes", "processor", "held_out", "value", "ratio", "other")
JUDGED = 6  # rows of each text
LOOKS = 6  # states of a run that are judged, the start and the end among them


class Followed:
    """Judges a network on held-out rows, and keeps its state each time."""

    higher_is_better = False

    def __init__(self, dense: nn.Module) -> None:
        self.dense = dense
        self.states: list[tuple[float, dict[str, Tensor]]] = []
        self.busy, self.since = 0.0, time.process_time()

    def __call__(self, model: nn.Module, batches: list[Any]) -> float:
        self.busy += time.process_time() - self.since
        if model is not self.dense:
            learning = {id(parameter) for parameter in trainable(model, "factors")}
            named = model.named_parameters(remove_duplicate=False)
            state = {name: value.detach().clone() for name, value in named if id(value) in learning}
            self.states.append((self.busy, state))
        found = divergence(self.dense, model, batches)
        self.since = time.process_time()
        return found


def compressed(task: Task, arguments: Any) -> dict[str, nn.Module]:
    """The network by the step it comes from: one-shot, and what the method and further rows make of it."""
    data, more = task.data(arguments.seed), task.more(arguments.seed, arguments.rows)
    if arguments.artifact is not None:
        small = rw.load(task.model, arguments.artifact)
        return {"artifact": small, "refitted": rw.refit(small, task.model, data + more)}
    stats = rw.collect(task.model, data, gradients=True, joint=True, positions="all")
    plan = rw.choose(task.model, stats, keep={"linear": arguments.keep}, rule="fisher")
    small = rw.factorise(task.model, plan, stats)
    if arguments.method == "sequential":
        rest = {"sequential": rw.factorise(task.model, plan, stats, data=data, positions="all")}
    else:
        rest = {"refitted": rw.refit(small, task.model, data + more)}
    return {"one-shot": small, **rest}


def measured(name: str, task: Task, arguments: Any) -> list[Row]:
    """A row for every step, and for some states on the way of the last one."""
    rows: list[Row] = []

    def judged(network: nn.Module) -> tuple[float, float]:
        own, other = (task.value(found) for found in task.judge(network))
        assert own is not None
        assert other is not None
        return own, other

    dense = judged(task.model)

    def row(step: str, network: nn.Module, **further: Any) -> None:
        value, other = judged(network)
        rows.append({"model": name, "step": step, "value": value, "ratio": value / dense[0], "other": other / dense[1]})
        rows[-1] |= {"keep": arguments.keep, "seed": arguments.seed, **further}
        print("  ".join(f"{key}={entry}" for key, entry in rows[-1].items()), flush=True)

    made = compressed(task, arguments)
    for step, network in made.items():
        row(step, network)
    start_from = made.popitem()[1]
    followed = Followed(task.model)
    healed, told = rw.heal(
        start_from,
        task.model,
        task.more(arguments.seed, arguments.rows),
        minutes=arguments.minutes,
        blocks=arguments.blocks,
        rate=arguments.rate,
        batch=arguments.batch,
        temperature=arguments.temperature,
        every=arguments.every,
        seed=arguments.seed,
        evaluate=followed,
        progress=_say,
    )
    looks = [(stage, look) for stage, each in told.stages.items() for look in each.looks]
    picked = torch.linspace(0, len(looks) - 1, min(LOOKS, len(looks))).round().long().tolist()
    done = 0.0
    for place, ((stage, look), (busy, state)) in enumerate(zip(looks, followed.states, strict=True)):
        if place and look.step == 0:  # another stage begins
            done += looks[place - 1][1].seconds
        if place in picked:
            healed.load_state_dict(state, strict=False)
            minutes = {"minutes": (done + look.seconds) / 60, "processor": busy / 60}
            row(stage, healed, steps=look.step, held_out=look.held_out, **minutes)
    return rows


def _say(stage: str, look: Look) -> None:
    print(f"  {stage} {look.step} steps, {look.seconds:.0f} s: held out {look.held_out:.5f}", flush=True)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--models", nargs="+", default=["stories260k"], choices=["stories260k", "smollm2"])
    options.add_argument("--keep", type=float, default=0.8, help="share of the layers that may be factorised")
    options.add_argument("--rows", type=int, default=100, help="rows of text to refit and to learn from")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--method", default="sequential", choices=["sequential", "one-shot"])
    options.add_argument("--blocks", type=float, default=0.0, help="share of the time for blocks by themselves")
    options.add_argument("--rate", type=float, default=2e-3)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--temperature", type=float, default=1.0)
    options.add_argument("--every", type=int, help="steps between two looks; by default an epoch")
    options.add_argument("--artifact", help="a compressed network to heal")
    options.add_argument("--tokens", type=int, default=8192, help="to calibrate SmolLM2")
    arguments = options.parse_args()
    start(arguments)
    if arguments.quick:
        arguments.minutes, arguments.rows = min(arguments.minutes, 0.25), 20
    rows: list[Row] = []
    for name in arguments.models:
        rows += measured(name, TASKS[name](arguments.tokens, JUDGED, arguments.quick), arguments)
    report(rows, COLUMNS, f"language models healed, rankwise {rw.__version__}", arguments.json)


if __name__ == "__main__":
    main()

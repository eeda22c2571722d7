"""Check that results match their reports: ordinary and odd networks, compressed one-shot and sequentially.

    python -m benchmarks.honesty [--only NAME ...] [--quick] [--json FILE]

For every result at two budgets: counted MACs and parameters equal the plan's to the unit; PyTorch's own counter sees
the same saving of MACs; outputs are finite; the error of every layer on the dense network's inputs, which a one-shot
plan predicts, is within a factor of two of the prediction; on held-out data the sequential error is at most 1.1 times
the one-shot error; the user's network has not changed by a bit. A refusal must be a ValueError with the words that the
case expects. The status is 1 if a row is wrong. Networks have random weights, and data few directions and noise, so
nothing here says what a trained network would lose.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
import warnings
from typing import Any

import torch

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.honesty_case import Case
from benchmarks.honesty_checks import ROUNDING, Verdict, judge
from benchmarks.honesty_networks import CASES

COLUMNS = ("network", "kind", "budget", "method", "sites", "macs_ratio", "error", "predicted", "seconds", "verdict")

# By kind: error of the worst layer in parts of the predicted one, and sequential errors in parts of one-shot ones.
SUMMARY = ("kind", "networks", "rows", "refused", "wrong", "least", "most", "sequential")


def run(case: Case, seed: int) -> list[Verdict]:
    """All rows of one network."""
    torch.manual_seed(seed)
    model = case.build().eval()
    generator = torch.Generator().manual_seed(seed)
    data = [case.batch(generator) for _ in range(case.batches)]
    held_out = [case.batch(generator) for _ in range(2)]
    if case.before is not None:
        case.before(model, data[0])
    settings: dict[str, Any] = {"example": data[0]} if case.whole else {}
    return [verdict for keep in case.budgets for verdict in judge(case, model, data, held_out, settings, keep)]


def summary(rows: list[Row]) -> list[Row]:
    """Number of rows of each kind of network, and the worst figures among rows that were not refused."""
    result: list[Row] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        ratios = [row["predicted"] for row in own if row.get("predicted")]
        pairs = itertools.pairwise(own)
        behind = [
            after["error"] / before["error"]
            for before, after in pairs
            if (before.get("method"), after.get("method")) == ("one-shot", "sequential")
            and (before.get("error") or 0) > ROUNDING
            and after.get("error") is not None
        ]
        result.append(
            {
                "kind": kind,
                "networks": len({row["network"] for row in own}),
                "rows": len(own),
                "refused": sum(row["verdict"].startswith("refused: ") for row in own),
                "wrong": sum(row["verdict"] != "right" and not row["verdict"].startswith("refused: ") for row in own),
                "least": min(ratios, default=None),
                "most": max(ratios, default=None),
                "sequential": max(behind, default=None),
            }
        )
    return result


def main() -> None:
    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--only", nargs="+", help="only networks whose name or kind contains one of these words")
    arguments = options.parse_args()
    start(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("rankwise").setLevel(logging.ERROR)
    rows: list[Row] = []
    faults: list[str] = []
    chosen = [case for case in CASES if case.quick or not arguments.quick]
    if arguments.only:
        chosen = [case for case in chosen if any(word in (case.name, case.kind) for word in arguments.only)]
    for case in chosen:
        begin = time.perf_counter()
        try:
            verdicts = run(case, arguments.seed)
        except Exception as error:  # a network that does not run at all is a row, too
            verdicts = [Verdict({"network": case.name, "kind": case.kind}, [f"{type(error).__name__}: {error}"])]
        seconds = (time.perf_counter() - begin) / len(verdicts)
        print(f"{case.name}: {seconds * len(verdicts):.0f} s", flush=True)
        for verdict in verdicts:
            told = verdict.faults or [verdict.figures.get("verdict", "right")]
            rows.append({**verdict.figures, "seconds": seconds, "verdict": "; ".join(told)})
            faults += [f"{case.name}, {verdict.figures.get('method')}: {fault}" for fault in verdict.faults]
    title = f"{len(chosen)} networks, rankwise {rw.__version__}"
    report(rows, COLUMNS, title, arguments.json)
    report(summary(rows), SUMMARY, "by kind")
    bad = sum(row["verdict"] != "right" and not row["verdict"].startswith("refused: ") for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} rows are right")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

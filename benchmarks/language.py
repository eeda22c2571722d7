"""Perplexity of a small trained language model under budgets, without any other option.

    python -m benchmarks.language [--keeps 0.9 0.8 0.7] [--rule RULE ...] [--quick] [--json FILE]

`stories260k` is a Llama of 5 layers whose embedding is its head. It is calibrated on the first 100 stories; perplexity
is measured on the 74 others, and `ratio` is relative to the dense network. Budgets count parameters of the whole
network, and each is tried one-shot and sequentially.
"""

from __future__ import annotations

import time
from typing import Any

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from rankwise.plan import DENSE

COLUMNS = ("rule", "keep", "method", "perplexity", "ratio", "params_ratio", "dense_sites", "seconds")
CALIBRATION = 100
CONTEXT = 512


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--keeps", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    options.add_argument("--rule", nargs="+", default=["knapsack"])
    arguments = options.parse_args()
    start(arguments)
    source = networks()
    model, tokenizer = source.stories260k()
    stories = source.stories()
    held_out = stories[CALIBRATION :: 4 if arguments.quick else 1]
    data = [source.torch.tensor([tokenizer.encode(story)[:CONTEXT]]) for story in stories[:CALIBRATION]]

    def perplexity(network: Any) -> float:
        return float(source.story_perplexity(network, tokenizer, held_out)["perplexity"])

    dense = perplexity(model)
    print(f"{sum(tokens.numel() for tokens in data):,} calibration tokens, dense perplexity {dense:.3f}")
    rows: list[Row] = []
    for rule in arguments.rule:
        for keep in arguments.keeps:
            for method in ("one-shot", "sequential"):
                begin = time.perf_counter()
                small, result = rw.compress(model, data, keep={"params": keep}, rule=rule, method=method)
                seconds, value = time.perf_counter() - begin, perplexity(small)
                row: Row = {"rule": rule, "keep": keep, "method": method, "perplexity": value, "ratio": value / dense}
                row["params_ratio"] = result.compressed.params / result.dense.params
                row["dense_sites"] = sum(row.format == DENSE for row in result.plan.rows)
                rows.append({**row, "seconds": seconds})
    report(rows, COLUMNS, f"stories260k, rankwise {rw.__version__}", arguments.json)


if __name__ == "__main__":
    main()

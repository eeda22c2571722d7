"""Compare factors, plans and curves of small networks with another checkout, bit by bit.

    python -m benchmarks.bits [--against FOLDER] [--json FILE]

With `--against`, the same is computed with the package in FOLDER/src, and the rows that differ are printed. A pure
refactoring must leave no row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw

METRICS = ("input", "diagonal", "fisher", "weight")
METHODS = ("sequential", "one-shot")
FREE_RULES = ("energy", "effective_rank", "stable_rank", "evbmf", "gavish_donoho")
BUDGET_RULES = ("knapsack", "fisher", "minimax", "uniform")


class Convolutions(nn.Module):
    """Convolutions of several dimensions, grouped, strided and transposed, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, stride=2, groups=2)
        self.transposed, self.flat = nn.ConvTranspose2d(32, 16, 3, stride=2), nn.Conv1d(16, 24, 3)
        self.hidden, self.last = nn.Linear(24, 40), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.plain(x).relu()).relu()
        x = self.flat(self.transposed(x).relu().mean(-1)).relu().mean(-1)
        return self.last(self.hidden(x).relu())


class Words(nn.Module):
    """An embedding, a block, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(60, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 60, bias=False)
        self.head.weight = self.table.weight

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.table(numbers)
        return self.head(x + self.down(self.up(x).relu()))


def digests() -> dict[str, str]:
    """Name of a result -> its digest."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(32, 3, 12, 12, generator=generator) for _ in range(4)]
    numbers = [torch.randint(0, 60, (16, 20), generator=generator) for _ in range(4)]
    torch.manual_seed(0)
    net, words = Convolutions().eval(), Words().eval()
    found: dict[str, str] = {}
    for name, model, data, further in (
        ("convolutions", net, pictures, {}),
        ("words", words, numbers, {"include": ["*", "table"]}),
    ):
        for method in METHODS:
            for metric in METRICS:
                small, report = rw.compress(model, data, keep={"params": 0.6}, method=method, metric=metric, **further)
                found[f"{name}, {method}, {metric}"] = _of(small.state_dict(), report.plan.to_dict())
    stats = rw.collect(net, pictures, gradients=True)
    for format in rw.FORMATS:
        curves = rw.profile(net, stats, formats=[format])
        found[f"curves of {format}"] = _of({name: [vars(each) for each in curve] for name, curve in curves.items()})
    for rule in (*BUDGET_RULES, *FREE_RULES):
        keep = {"macs": 0.5} if rule in BUDGET_RULES else None
        found[f"rule {rule}"] = _of(rw.choose(net, stats, rule=rule, keep=keep).to_dict())
    budgets = {"macs": 0.6, "params": 0.5, "bytes": 0.6}
    found["three budgets"] = _of(rw.choose(net, stats, keep=budgets).to_dict())
    found["all formats"] = _of(rw.choose(net, stats, keep={"macs": 0.5}, formats="auto").to_dict())
    return found


def _of(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        for key, each in sorted(value.items()):
            digest.update(key.encode())
            digest.update(
                each.detach().contiguous().numpy().tobytes() if isinstance(each, Tensor) else repr(each).encode()
            )
    return digest.hexdigest()[:16]


def main() -> None:
    """Print the digests, or those that differ from another checkout's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--json", type=Path, help="write the digests to this file")
    given = parser.parse_args()
    found = digests()
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    if given.against is None:
        print("\n".join(f"{digest}  {name}" for name, digest in found.items()))
        return
    with tempfile.TemporaryDirectory() as folder:
        file, paths = Path(folder) / "there.json", [str(given.against / "src"), str(Path(__file__).parents[1])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "benchmarks.bits", "--json", str(file)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        there = json.loads(file.read_text())
    differ = [name for name in found if found[name] != there.get(name)]
    print(f"{len(found) - len(differ)} of {len(found)} rows have the same bits")
    print("\n".join(differ))
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()

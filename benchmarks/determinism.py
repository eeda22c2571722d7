"""Check that equal settings give equal bits, and other settings equal factors up to rounding.

    python -m benchmarks.determinism [--only WORD ...] [--quick] [--json FILE]

Each row is one result: statistics, a plan, a network factorised in one format one-shot or sequentially, a healed one, a
stored file. It is made again in several processes. With the same seed and number of threads, its bits must equal those
of the first process. With another number of threads, or the same samples in other batches, the weights V of the chains
may differ by rounding, by at most `ROUNDING` of their norm. If only the bits are promised, there is no figure, or one
in brackets. The status is 1 if a row breaks its promise.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from rankwise.formats import get_format
from rankwise.layers.low_rank import LowRank
from rankwise.names import STORAGES

COLUMNS = ("what", "again", "threads", "threads again", "batches", "verdict")
ROUNDING = 1e-3  # of the norm of V, where sums are taken in another order; fits of several factors amplify it
# The fit of several nested levels takes the best of three starts, and ends at a decrease of 0.1 %: rounding tips both.
TIPPED = ("slr3",)
SAMPLES, BATCH, OTHER_BATCH = 48, 12, 16


class Net(nn.Module):
    """One layer of each kind that formats treat differently: 3 x 3, grouped with stride, 1 x 1, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 16, (3, 2), (2, 1), (1, 1), groups=2, bias=False)
        self.point = nn.Conv2d(16, 12, 1, 2)
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.point(F.relu(self.grouped(x))))
        return self.head(x.mean((2, 3)))


class Made(NamedTuple):
    """A result of one process.

    Attributes:
        digest: of all its bits.
        weights: tensors that may differ by rounding; empty if only the bits are promised.
    """

    digest: str
    weights: dict[str, Tensor]


class Setting(NamedTuple):
    """How a process makes its results."""

    threads: int
    batch: int


def results(seed: int, batch: int, only: Sequence[str]) -> Iterator[tuple[str, Made]]:
    """All results of this process, by name."""
    torch.manual_seed(seed)
    model = Net().eval()
    data = list(torch.randn(SAMPLES, 4, 9, 8, generator=torch.Generator().manual_seed(seed)).split(batch))
    stats = rw.collect(model, data, positions="all", seed=seed)
    if _wanted("collect", only):
        sums = {f"{name} {part}": value for name, found in stats.items() for part, value in _tensors(found)}
        yield "collect", Made(_digest(sums.values()), sums)
    if _wanted("choose", only):
        plan = rw.choose(model, stats, keep={"macs": 0.5})
        yield "choose", Made(_digest([repr(plan.to_dict())]), {})
    for name in rw.FORMATS:
        for method in ("one-shot", "sequential"):
            if _wanted(f"{name}, {method}", only):
                small = _factorised(model, stats, data, name, method, seed)
                yield f"{name}, {method}", _made(small)
    rest = [f"stored as {storage}" for storage in STORAGES] + ["heal"]
    if not any(_wanted(name, only) for name in rest):
        return
    small = _factorised(model, stats, data, "tucker2", "sequential", seed)
    for name, storage in zip(rest, STORAGES, strict=False):
        if _wanted(name, only):
            with tempfile.TemporaryDirectory() as folder:
                rw.save(small, Path(folder) / "out", storage=storage)
                content = (Path(folder) / "out" / "model.safetensors").read_bytes()
            yield name, Made(_digest([content]), {})
    if _wanted("heal", only):
        healed, _ = rw.heal(small, model, data, epochs=2, batch=8, seed=seed)
        yield "heal", Made(_made(healed).digest, {})


def _factorised(
    model: nn.Module, stats: rw.Statistics, data: list[Tensor], name: str, method: str, seed: int
) -> nn.Module:
    """The network with every layer that a format can factorise, at half of its ranks."""
    format, sites = get_format(name), stats.sites
    pins = {
        site.name: (name, tuple(max(1, limit // 2) for limit in format.limits(site)))
        for site in sites.values()
        if format.refuses(site) is None
    }
    keep = {"params": 10 * sites.total_params}  # what is pinned is taken, whatever it costs
    plan = rw.choose(model, stats, keep=keep, formats=name, pin=pins, ignore=sorted(sites.keys() - pins.keys()))
    if method == "one-shot":
        return rw.factorise(model, plan, stats)
    return rw.factorise(model, plan, data=data, positions="all", seed=seed)


def _made(small: nn.Module) -> Made:
    chains = {name: module for name, module in small.named_modules() if isinstance(module, LowRank)}
    weights = {name: torch.clone(chain.weight).detach() for name, chain in chains.items()}
    return Made(_digest(small.state_dict().values()), weights)


def _tensors(found: rw.Moments) -> Iterator[tuple[str, Tensor]]:
    """Second moment about zero, however it is stored, and mean."""
    for metric in found.metrics():
        yield "second moment", metric.dense()
    yield "mean", found.mean_GD


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            value = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(value if isinstance(value, bytes) else value.encode())
    return digest.hexdigest()


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(word in name for word in only)


def in_a_process(setting: Setting, seed: int, only: Sequence[str], folder: Path) -> dict[str, Made]:
    """The results of a new process."""
    file = folder / "made.pt"
    command = [sys.executable, "-m", "benchmarks.determinism", "--threads", str(setting.threads), "--seed", str(seed)]
    command += ["--write", str(file), "--batch", str(setting.batch), *(["--only", *only] if only else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {name: Made(*made) for name, made in torch.load(file, weights_only=True).items()}


def compared(made: dict[str, dict[str, Made]]) -> list[Row]:
    """A row for each result.

    Args:
        made: results by process: "first"; "again" with the same settings; "threads" and "threads again" with another
            number of threads; "batches" with other batches.
    """
    rows: list[Row] = []
    for name, first in made["first"].items():
        same = made["again"][name].digest == first.digest
        same_threads = made["threads"][name].digest == made["threads again"][name].digest
        row: Row = {"what": name, "again": _bits(same), "threads again": _bits(same_threads)}
        differences = {which: difference(first, made[which][name]) for which in ("threads", "batches")}
        promised = not name.startswith(TIPPED)
        shown = "{:.1e}" if promised else "({:.1e})"
        row |= {which: shown.format(off) for which, off in differences.items() if off is not None}
        near = all(off is None or off <= ROUNDING for off in differences.values())
        right = same and same_threads and (near or not promised)
        rows.append({**row, "verdict": "right" if right else "BROKEN"})
    return rows


def _bits(same: bool) -> str:
    return "same bits" if same else "OTHER BITS"


def difference(first: Made, other: Made) -> float | None:
    """The largest relative difference of the weights, None if no limit is promised."""
    if first.weights.keys() != other.weights.keys():
        return float("inf")
    pairs = [(first.weights[name].double(), other.weights[name].double()) for name in first.weights]
    return max((float((a - b).norm() / a.norm()) if a.any() else float(b.norm()) for a, b in pairs), default=None)


def main() -> None:
    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--only", nargs="+", default=[], help="only rows whose name contains one of these words")
    options.add_argument("--write", type=Path, help="make the results in this process, and write them to this file")
    options.add_argument("--batch", type=int, default=BATCH, help="samples in a batch, with --write")
    arguments = options.parse_args()
    start(arguments)
    if arguments.write is not None:
        made = {name: tuple(each) for name, each in results(arguments.seed, arguments.batch, arguments.only)}
        torch.save(made, arguments.write)
        return
    only = arguments.only or (["collect", "choose", "svd, ", "cp, one-shot", "entropy"] if arguments.quick else [])
    threads = arguments.threads
    settings = {
        "first": Setting(threads, BATCH),
        "again": Setting(threads, BATCH),
        "threads": Setting(threads + 1, BATCH),
        "threads again": Setting(threads + 1, BATCH),
        "batches": Setting(threads, OTHER_BATCH),
    }
    with tempfile.TemporaryDirectory() as folder:
        made = {which: in_a_process(how, arguments.seed, only, Path(folder)) for which, how in settings.items()}
    rows = compared(made)
    title = f"{threads} threads, beside them {threads + 1}; {SAMPLES} samples by {BATCH}, beside them by {OTHER_BATCH}"
    report(rows, COLUMNS, title, arguments.json)
    broken = [row["what"] for row in rows if row["verdict"] != "right"]
    print(f"{len(rows) - len(broken)} of {len(rows)} rows keep their promise")
    sys.exit(1 if broken or not rows else 0)


if __name__ == "__main__":
    main()

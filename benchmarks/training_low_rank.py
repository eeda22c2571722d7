"""Compare training for low rank with training dense, compressing and healing, at equal parameters and equal time.

    python -m benchmarks.training_low_rank [--networks lenet5 resnet8] [--seeds 0 1 2] [--epochs 12] [--keep 0.3]
        [--samples N] [--only NAME ...] [--tries 3] [--quick] [--json FILE]

First the dense network is trained for all epochs, and its curve is printed: choose epochs with which it has converged.
Then every technique trains a network of `keep` of the parameters, and beside each stands its rival: the dense network
trained for three quarters of the epochs, compressed by `rankwise.compress` to the same parameters, and healed with
labels for as long as the technique took in all, in CPU seconds of one thread. Techniques that start from a trained
network have trained it themselves. Every technique tries the same number of strengths, on the first seed, and takes the
one with the least loss on the held-out samples; with `--quick` none is tried and the middle one is taken. Test images
are only read at the end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.orthogonal import CALIBRATION, RATES, TUNE, Case, tuned
from rankwise.preset import build_network
from rankwise.techniques import train_low_rank
from rankwise.training import Samples

COLUMNS = ("network", "method", "seed", "setting", "params", "top1", "rival_params", "rival_top1", "gain", "seconds")
WEIGHTS = (1e-4, 1e-3, 1e-2)
# Settings that each technique tries, the middle one without tries.
TRIED: dict[str, tuple[str, ...]] = {
    "maestro": tuple(f"maestro:strength={s:g}" for s in WEIGHTS),
    "flexrank": tuple(f"flexrank:weight={w:g}" for w in (0.3, 1.0, 3.0)),
    "learning_compression": tuple(f"learning_compression:first={m:g},last={100 * m:g}" for m in WEIGHTS),
    "admm": tuple(f"admm:rho={r:g}" for r in (1e-3, 1e-2, 1e-1)),
    "soft_threshold": tuple(f"soft_threshold:weight={w:g}" for w in WEIGHTS),
    "rank_pruning": tuple(f"rank_pruning:lost={lost:g}" for lost in (0.02, 0.1, 0.3)),
    "dynamical": tuple(f"dynamical:lost={lost:g},bound=1e-4" for lost in (0.05, 0.1, 0.2)),
    "svd_training": tuple(f"svd_training:weight={w:g}" for w in (1e-3, 1e-2, 1e-1)),
    "warm_up": tuple(f"warm_up:settled={s:g}" for s in (0.005, 0.01, 0.02)),
    "warm_up ratio": tuple(f"warm_up:ratio={r:g}" for r in (0.125, 0.25, 0.5)),
} | {
    f"penalty {measure}": tuple(f"penalty:measure={measure},weight={w:g}" for w in WEIGHTS)
    for measure in ("nuclear", "schatten", "hoyer", "effective_rank", "stable_rank", "log_det")
}
TRAINED = ("flexrank", "learning_compression", "admm")  # these start from a trained network
SWITCH = {"warm_up": 0.75, "warm_up ratio": 0.75}  # share of the second training
PRESET = {"preset svd": ["svd"], "preset tucker": ["tucker2", "svd"], "preset tt": ["tt"], "preset tr": ["tr"]}


@dataclass(frozen=True, kw_only=True)
class Race:
    """What all methods of one network and seed share.

    Attributes:
        case, model: the data, and the network with random weights.
        dense: the network after three quarters of the epochs.
        dense_seconds, heal_seconds: CPU seconds of that training, and of an epoch of healing.
        options: rate, batch and seed.
    """

    case: Case
    model: nn.Module
    dense: nn.Module
    dense_seconds: float
    heal_seconds: float
    epochs: float
    keep: float
    options: dict[str, Any]

    def run(self, name: str, setting: str, epochs: float) -> tuple[nn.Module, float, float]:
        """A technique's small network, its held-out loss, and the CPU seconds in all."""
        begin = time.process_time()
        if name in PRESET:
            small = self._preset(PRESET[name], epochs)
            return small, 0.0, time.process_time() - begin
        tune = SWITCH.get(name, TUNE)
        begun, before = self.model, 0.0
        if name in TRAINED:  # half of the first training is dense
            begun, before = tuned(self.case, self.model, epochs * (1 - tune) / 2, self.options), epochs * (1 - tune) / 2
        left = epochs - before
        small, told = train_low_rank(
            begun,
            self.case.images,
            self.case.labels,
            technique=setting,
            only=self.case.hidden,
            rule="knapsack",
            keep={"params": self.keep},
            epochs=left,
            tune=tune * epochs / left,
            tune_rate=self.options["rate"] if name in SWITCH else None,
            calibration=CALIBRATION,
            augment=self.case.augment,
            **self.options,
        )
        return small, told.losses["end"], time.process_time() - begin

    def rival(self, params: int, seconds: float) -> tuple[nn.Module, int]:
        """The dense network compressed to as many parameters, healed until it took as long in all."""
        begin = time.process_time()
        chosen = Samples.of(self.case.images).split(0.1, self.options["seed"])[0][:CALIBRATION]
        batches = list(self.case.images[chosen].split(64))
        small, _ = rw.compress(self.dense, batches, keep={"params": params}, seed=self.options["seed"])
        left = seconds - self.dense_seconds - (time.process_time() - begin)
        epochs = max(left / self.heal_seconds, 0.1)
        healed = self._healed(small, epochs)
        return healed, sum(p.numel() for p in healed.parameters())

    def _healed(self, small: nn.Module, epochs: float) -> nn.Module:
        """Healed with labels, all parameters, at a tenth of the rate; labels judge as they judge the techniques."""
        how = {**self.options, "rate": self.options["rate"] / 10, "epochs": epochs, "train": "all"}
        case = self.case
        healed, _ = rw.heal(
            small, self.dense, case.images, labels=case.labels, augment=case.augment, evaluate=held_out_loss, **how
        )
        return healed

    def _preset(self, formats: list[str], epochs: float) -> nn.Module:
        sites = rw.find(self.model, self.case.images[:1])
        dense = [site for site in sites if site not in {each.name for each in sites.select(self.case.hidden)}]
        keep = {"params": self.keep}
        plan = rw.choose(self.model, sites, keep=keep, formats=formats, metric="weight", ignore=dense, refine=False)
        torch.manual_seed(self.options["seed"])
        return tuned(self.case, build_network(self.model, plan, sites), epochs, self.options)


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Any]) -> float:
    """Mean cross entropy."""
    losses = [cross_entropy(model(x), y, reduction="sum") for x, y in batches]
    return float(torch.stack(losses).sum()) / sum(len(y) for _, y in batches)


held_out_loss.higher_is_better = False  # type: ignore[attr-defined]


def prepared(case: Case, seed: int, epochs: float, keep: float, rate: float, curve: bool) -> Race:
    """Train the dense network, show its curve, and time an epoch of healing."""
    torch.manual_seed(seed)
    model = case.build().eval()
    options = {"rate": rate, "batch": 64, "seed": seed}
    if curve:
        print("dense network, test accuracy by epochs of training:", flush=True)
        for part in (0.25, 0.5, 0.75, 1.0):
            whole = tuned(case, model, part * epochs, options)
            print(f"  {part * epochs:g} epochs: {case.accuracy(whole):.2f} %", flush=True)
    begin = time.process_time()
    dense = tuned(case, model, (1 - TUNE) * epochs, options)
    seconds = time.process_time() - begin
    race = Race(
        case=case,
        model=model,
        dense=dense,
        dense_seconds=seconds,
        heal_seconds=1.0,
        epochs=epochs,
        keep=keep,
        options=options,
    )
    small, _ = rw.compress(dense, list(case.images[:256].split(64)), keep={"params": keep}, seed=seed)
    begin = time.process_time()
    race._healed(small, TUNE * epochs)
    heal_seconds = (time.process_time() - begin) / (TUNE * epochs)
    return Race(**{**vars(race), "heal_seconds": heal_seconds})


def setting_of(race: Race, name: str, tries: int) -> str:
    """The setting with the least held-out loss, or the middle one."""
    candidates = TRIED.get(name, ("",))
    if tries < 2 or len(candidates) < 2:
        return candidates[len(candidates) // 2]
    losses = {}
    for candidate in candidates[:tries]:
        try:
            losses[candidate] = race.run(name, candidate, race.epochs)[1]
        except ValueError as error:  # such as a strength that prunes everything
            print(f"  {candidate}: {error}", flush=True)
    print("  " + ", ".join(f"{candidate} {loss:.4f}" for candidate, loss in losses.items()), flush=True)
    return min(losses, key=losses.__getitem__)


def verdict(rows: list[Row]) -> str:
    """Who wins, by the mean over the seeds of each network and method."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        gains: dict[str, list[float]] = {}
        for row in rows:
            if row["network"] == network and "gain" in row:
                gains.setdefault(row["method"], []).append(row["gain"])
        means = {method: sum(own) / len(own) for method, own in gains.items()}
        wins = [f"{method} {mean:+.2f}" for method, mean in means.items() if mean > 0]
        losses = [f"{method} {mean:+.2f}" for method, mean in means.items() if mean <= 0]
        lines.append(f"{network}: better than its rival: {', '.join(wins) or 'none'}")
        lines.append(f"{network}: not better: {', '.join(losses) or 'none'}")
    return "\n".join(lines)


def race_all(race: Race, network: str, names: list[str], chosen: Callable[[str], str], rows: list[Row]) -> None:
    """Add a row for each method."""
    for name in names:
        row: Row = {"network": network, "seed": race.options["seed"], "method": name}
        try:
            setting = chosen(name)
            small, _, seconds = race.run(name, setting, race.epochs)
        except ValueError as error:
            print(f"{network} {name}: {error}", flush=True)
            continue
        params = sum(p.numel() for p in small.parameters())
        rival, rival_params = race.rival(params, seconds)
        row |= {"setting": setting.partition(":")[2], "params": params, "seconds": seconds}
        row |= {"top1": race.case.accuracy(small), "rival_params": rival_params}
        row["rival_top1"] = race.case.accuracy(copy.deepcopy(rival))
        row["gain"] = row["top1"] - row["rival_top1"]
        rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=["lenet5", "resnet8"], choices=["lenet5", "resnet8"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the weights and the order")
    options.add_argument("--epochs", type=float, default=12.0)
    options.add_argument("--keep", type=float, default=0.3, help="share of the parameters")
    options.add_argument("--samples", type=int, help="number of training images")
    options.add_argument("--only", nargs="+", choices=[*TRIED, *PRESET], help="methods")
    options.add_argument("--tries", type=int, default=3, help="settings that each technique tries")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.networks, arguments.seeds, arguments.tries = arguments.networks[:1], arguments.seeds[:1], 1
        arguments.samples, arguments.epochs = min(arguments.samples or 1000, 1000), min(arguments.epochs, 8.0)
    start(arguments)
    names = arguments.only or [*TRIED, *PRESET]
    module, rows = networks(), list[Row]()
    for network in arguments.networks:
        case = Case.of(network, module, arguments.samples, 2000 if arguments.quick else 10000)
        settings: dict[str, str] = {}
        for seed in arguments.seeds:
            first = seed == arguments.seeds[0]
            race = prepared(case, seed, arguments.epochs, arguments.keep, RATES[network], first)

            def chosen(name: str, race: Race = race, settings: dict[str, str] = settings) -> str:
                if name not in settings:
                    settings[name] = setting_of(race, name, arguments.tries)
                return settings[name]

            race_all(race, network, names, chosen, rows)
            report(rows, COLUMNS, "training for low rank", arguments.json)
    print(verdict(rows))


if __name__ == "__main__":
    main()

"""Compare our fits with tensorly's and with the published Tucker-2 fit; their times are measured in turn.

Besides the seconds of the whole fit, each row has the time we need to reach the other error, within 0.001 % and in the
metric of the row (`equal_seconds`), and how many times as fast that is (`equal_speedup`). Both are absent if we end
above that error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import rankwise as rw
from benchmarks import formats_peers, formats_reference
from benchmarks.common import Row
from benchmarks.formats_layers import Layer, terms
from rankwise.formats import FORMATS, Factors, Ranks
from rankwise.linalg import tucker2
from rankwise.linalg.metric import Identity

METRICS = ("input", "weight")
# Errors that differ by less than this, relative, are equal.
EQUAL = 1e-5
# Where all together take less than this many seconds, times are medians of five; those of table "speed" of three.
REPEATED = 3.0
# Inputs up to which the published algorithm is run, its sweeps and ours.
REFERENCE_INPUTS, REFERENCE_SWEEPS, OUR_SWEEPS = 1152, 100, 10
# Sweeps that ours are given in turn, until they are no worse.
MORE_SWEEPS = (OUR_SWEEPS, 20, 40, 80)
# Sweeps of `parafac` in table "speed".
SPEED_SWEEPS = 20


def clock() -> float:
    """Processor seconds on one thread, which other programs hardly change; else wall-clock seconds."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def peers(layer: Layer, fits: dict[tuple[str, str], Factors], quick: bool, seed: int) -> list[Row]:
    """Rows of one layer, at the ranks of our fits."""
    rows: list[Row] = []
    sweeps = formats_peers.sweeps_for(layer.weight)
    for (name, metric), known in fits.items():
        if name not in formats_peers.PEERS:
            continue
        try:
            row = _versus(layer, name, metric, known.ranks, sweeps, 1e-8, seed, 1 if quick else 5, REPEATED)
        except RuntimeError as error:  # a singular system of its own
            print(f"tensorly failed: {layer.name} {name} {known.ranks}: {error}")
            continue
        if row["format"] not in ("cp", "cp3"):
            row.pop("peer_sweeps")
        rows.append(row)
        show(row)
    return rows


def speed(size: int, rank: int, rounds: int, seed: int) -> list[Row]:
    """Rows of the canonical polyadic forms of one planted kernel with a falling spectrum, in the weight metric."""
    weight = terms(size, 2 * rank, torch.Generator().manual_seed(seed))
    site = rw.find(nn.Sequential(nn.Conv2d(size, size, 3, padding=1)), torch.zeros(1, size, 4, 4))["0"]
    metric = Identity(site.in_features)
    layer = Layer(network="planted", name=f"{size}x{size}x3x3", site=site, weight=weight, input=metric)
    rows = [
        _versus(layer, name, "weight", (rank,), SPEED_SWEEPS, 0.0, seed, rounds, float("inf")) for name in ("cp3", "cp")
    ]
    for row in rows:
        show(row)
    return rows


def reference(layer: Layer, ranks: Sequence[Ranks]) -> list[Row]:
    """Rows of one layer compared with the published algorithm."""
    rows = list[Row]()
    W_TCQ = layer.weight.flatten(2)
    total, sigma_DD = layer.input.energy(W_TCQ.flatten(1)), layer.input.dense()
    for R, S in ranks:
        begin = clock()
        fit = tucker2.fit(W_TCQ, layer.input, R, S, sweeps=OUR_SWEEPS, tolerance=1e-12)
        seconds = clock() - begin
        default = tucker2.fit(W_TCQ, layer.input, R, S).error / total
        begin = clock()
        theirs, history = formats_reference.tucker2(W_TCQ, sigma_DD, R, S, REFERENCE_SWEEPS)
        reference_seconds = clock() - begin
        row: Row = {"network": layer.network, "layer": layer.name, "ranks": f"{R},{S}"}
        row |= {"sigma": 100 * fit.error / total, "default_sigma": 100 * default}
        row |= {"reference_sigma": 100 * theirs, "reference_sweep_10": 100 * history[9]}
        row["worse_by"] = 100 * (fit.error / total / theirs - 1)
        row["default_worse_by"] = 100 * (default / theirs - 1)
        row |= {"seconds": seconds, "reference_seconds": reference_seconds}
        for sweeps in MORE_SWEEPS:
            begin = clock()
            error = tucker2.fit(W_TCQ, layer.input, R, S, sweeps=sweeps, tolerance=1e-12).error / total
            if error <= theirs * (1 + EQUAL):
                row |= {"equal_sweeps": sweeps, "equal_seconds": clock() - begin}
                break
        rows.append(row)
        show(row)
    return rows


def _versus(
    layer: Layer,
    name: str,
    metric: str,
    ranks: Ranks,
    sweeps: int,
    tolerance: float,
    seed: int,
    rounds: int,
    repeated: float,
) -> Row:
    """One row: errors of both in both metrics, and the medians of the seconds of up to so many rounds."""
    decompose = formats_peers.decomposer(name, layer.weight, ranks, sweeps, tolerance, seed)
    begin = clock()
    found = decompose()
    peer_seconds = clock() - begin
    theirs = errors(layer, formats_peers.dense(name, layer.weight, found), "peer_")
    key = "sigma" if metric == "input" else "weight"
    equal = theirs["peer_" + key] * (1 + EQUAL)
    fit = partial(FORMATS[name].fit, layer.site, layer.weight, [layer.metric(metric)], ranks)
    runs = [fit, partial(fit, enough=equal / 100)]
    if peer_seconds < repeated:
        runs.append(decompose)
    (ours, early, *_), seconds, done = in_turn(runs, rounds, repeated)
    peer_seconds = seconds[2] if peer_seconds < repeated else peer_seconds
    row = about(layer, name, ranks, metric) | errors(layer, ours.weight) | theirs
    if theirs["peer_" + key] > 1e-9:
        row["worse_by"] = 100 * (row[key] / row["peer_" + key] - 1)
    row |= {"peer": formats_peers.PEERS[name], "peer_sweeps": sweeps, "rounds": done}
    row |= {"seconds": seconds[0], "peer_seconds": peer_seconds, "speedup": peer_seconds / seconds[0]}
    reached = errors(layer, early.weight)[key]
    if reached <= max(equal, 1e-9):
        row |= {"equal_error": reached, "equal_seconds": seconds[1], "equal_speedup": peer_seconds / seconds[1]}
    return row


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int, repeated: float) -> tuple[list[Any], list[float], int]:
    """What all give, the medians of their seconds, and of how many rounds; of one, if that takes `repeated` seconds."""
    results: list[Any] = []
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < rounds:
        results = []
        for run, seconds in zip(runs, times, strict=True):
            begin = clock()
            results.append(run())
            seconds.append(clock() - begin)
        if sum(seconds[0] for seconds in times) >= repeated:
            break
    return results, [statistics.median(seconds) for seconds in times], len(times[0])


def about(layer: Layer, format: str, ranks: Ranks, metric: str) -> Row:
    """The first columns of a row."""
    row: Row = {"network": layer.network, "layer": layer.name, "shape": "x".join(map(str, layer.site.weight_shape))}
    return row | {"format": format, "ranks": ",".join(map(str, ranks)), "metric": metric}


def errors(layer: Layer, replacement: torch.Tensor, prefix: str = "") -> Row:
    """Relative squared errors of a kernel in both metrics, in per cent."""
    sigma, weight = (layer.error(metric, replacement) for metric in METRICS)
    return {f"{prefix}sigma": sigma, f"{prefix}weight": weight}


def show(row: Row) -> None:
    """Print a row as soon as it is measured."""
    print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)

"""Whatever Rankwise writes and reads back: how it is written with one content or another, and which one is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rankwise as rw
from rankwise.artifact import read
from rankwise.cli.output import Output
from rankwise.latency import Latency, get_engine
from rankwise.latency.cache import Cache
from rankwise.latency.roofline import Device
from rankwise.training.checkpoint import read_checkpoint, write_checkpoint

OLD, NEW, NEXT = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One kind of file or directory.

    Attributes:
        name: of the file or directory.
        write: writes content 1, 2 or 3.
        content: which one is there; raises where none is.
        files: what may lie in the folder after that.
        adds: whether contents add up, as those of a cache do, so that the new one holds the old one.
    """

    name: str
    write: Callable[[Path, int], Any]
    content: Callable[[Path], int]
    files: tuple[str, ...] = ()
    adds: bool = False

    def __str__(self) -> str:
        return self.name


def network(content: int) -> nn.Module:
    """A factorised network that tells which one it is."""
    torch.manual_seed(content)
    layer = rw.FORMATS["svd"].build(nn.Linear(12, 8), (2,), True)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)).eval()


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def _save(storage: str) -> Callable[[Path, int], Any]:
    return lambda path, content: rw.save(network(content), path, figures={"content": content}, storage=storage)


NETWORKS = {content: network(content) for content in (OLD, NEW, NEXT)}


def _loaded(path: Path) -> int:
    """Which network it is; what it says about itself is read apart, and may be newer."""
    assert read(path).figures["content"] in NETWORKS
    made = rw.load(fresh(), path)
    x = torch.ones(2, 12)
    with torch.no_grad():
        off = {content: float((made(x) - wanted(x)).abs().max()) for content, wanted in NETWORKS.items()}
    content = min(off, key=off.__getitem__)
    assert off[content] < 0.02
    return content


def statistics(content: int) -> rw.Statistics:
    torch.manual_seed(content)
    return rw.collect(fresh(), [torch.randn(16, 12) + content for _ in range(2)], seed=content)


STATISTICS = {content: statistics(content) for content in (OLD, NEW, NEXT)}


def _statistics(path: Path) -> int:
    found = rw.Statistics.load(path)
    wanted = STATISTICS[found.seed]
    for name, moments in found.items():
        assert torch.equal(moments.mean_GD, wanted[name].mean_GD)
    return found.seed


def _plan(path: Path, content: int) -> None:
    row = rw.PlanRow(site="0", format="svd", ranks=(content,), params=content, macs=content)
    rw.Plan(rows=(row,), shrink=content / 10).save(path)


def _cache(path: Path) -> Cache:
    return Cache(get_engine("torch"), nn.Linear(2, 2), folder=path)


def _times(path: Path, content: int) -> None:
    cache = _cache(path)
    cache.add({f"layer{each}": Latency(median=1.0 * each, low=0.5, high=9.0) for each in range(content + 1)})


def _timed(path: Path) -> int:
    cache = _cache(path)
    return max((each for each in (OLD, NEW, NEXT) if f"layer{each}" in cache), default=0)


def _checkpoint(path: Path, content: int) -> None:
    write_checkpoint(path, {"seed": content}, {"weights": {"a": torch.full((1000,), float(content))}, "step": content})


def _read_checkpoint(path: Path) -> int:
    state = read_checkpoint(path)
    assert torch.equal(state["weights"]["a"], torch.full((1000,), float(state["step"])))
    return int(state["step"])


def _report(path: Path, content: int) -> None:
    out = Output(str(path))
    out.result("evaluate", {"content": content, "more": ["x" * 100] * 100})
    out.write_report(path)


def _json(path: Path) -> int:
    import json

    return int(json.loads(path.read_text())["content"])


def exported(content: int) -> nn.Module:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(content)
        layer.bias.zero_()
    return layer.eval()


def _pt2(path: Path, content: int) -> None:
    rw.export.pt2(exported(content), torch.ones(1, 4), path, dynamic_batch=False)


def _run_pt2(path: Path) -> int:
    return round(float(torch.export.load(path).module()(torch.ones(1, 4))[0, 0]) / 4)


def _onnx(path: Path, content: int) -> None:
    rw.export.onnx(exported(content), torch.ones(1, 4), path, dynamic_batch=False)


def _run_onnx(path: Path) -> int:
    import onnx
    from onnx.numpy_helper import to_array

    weights = [to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return round(float(max(weight.max() for weight in weights)))


DIRECTORY = ("model.safetensors", "rankwise.json")
WRITERS = (
    *(
        Writer(name=f"artifact {storage}", write=_save(storage), content=_loaded, files=DIRECTORY)
        for storage in ("plain", "entropy", "int8+entropy")
    ),
    Writer(name="statistics", write=lambda path, content: STATISTICS[content].save(path), content=_statistics),
    Writer(name="plan", write=_plan, content=lambda path: rw.Plan.load(path).rows[0].ranks[0]),
    Writer(
        name="roofline",
        write=lambda path, content: Device(name="x", peak=content, bandwidth=1e9).save(path),
        content=lambda path: round(Device.load(path).peak),
    ),
    Writer(name="checkpoint", write=_checkpoint, content=_read_checkpoint),
    Writer(name="times", write=_times, content=_timed, adds=True),
    Writer(name="report", write=_report, content=_json),
)
EXPORTS = (
    Writer(name="net.pt2", write=_pt2, content=_run_pt2),
    Writer(name="net.onnx", write=_onnx, content=_run_onnx),
)

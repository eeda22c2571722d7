"""The parts of a compression that a checkpoint keeps, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..files import built, digest, parse_json, read_text, replacing, told
from ..files.tensors import SEAL, read_tensors, write_tensors
from ..plan import Curve, Option, Plan
from ..statistics import Statistics

Value = TypeVar("Value")
Layer = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part(Generic[Value]):
    """A kind of part; each part has a file."""

    name: str
    suffix: str
    write: Callable[[Path, Value], object]
    read: Callable[[Path], Value]


def _write_json(path: Path, value: Any) -> None:
    plain = json.loads(json.dumps(value))
    with replacing(path) as new:
        new.write_text(json.dumps({"value": plain, "sha256": digest(plain)}), encoding="utf-8")


def _read_json(path: Path) -> Any:
    with told(path):
        content = parse_json(read_text(path))
        if not isinstance(content, dict) or content.get("sha256") != digest(content.get("value")):
            raise ValueError("its content does not match its sha256")
        return content["value"]


def _read_curve(path: Path) -> Curve:
    with told(path):
        return tuple(built(Option, option, "option") for option in _read_json(path))


def _write_layer(path: Path, layer: Layer) -> None:
    with replacing(path) as new:
        write_tensors(layer, new, {"kind": "layer"})


def _read_layer(path: Path) -> Layer:
    with told(path):
        tensors, about = read_tensors(path)
        if SEAL not in about:
            raise ValueError("its sha256 is missing")
        return tensors


STATISTICS: Part[Statistics] = Part("statistics", ".safetensors", lambda path, stats: stats.save(path), Statistics.load)
CURVES: Part[Curve] = Part(
    "curves", ".json", lambda path, curve: _write_json(path, [asdict(option) for option in curve]), _read_curve
)
PLAN: Part[Plan] = Part(
    "plan", ".json", lambda path, plan: _write_json(path, plan.to_dict()), lambda path: Plan.from_dict(_read_json(path))
)
LAYERS: Part[Layer] = Part("layer", ".safetensors", _write_layer, _read_layer)

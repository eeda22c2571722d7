"""Statistics as a file in its own right: collected by one person, used by another who never sees the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise import Plan, Statistics

MODEL = ("nets.py:build", "--weights", "net.pt")
COLLECT = ("collect", *MODEL[:1], "data.npz", *MODEL[1:], "-o", "s.safetensors")
COMPRESS = (
    "compress",
    *MODEL,
    "--stats",
    "s.safetensors",
    "--keep",
    "macs=0.5",
    "-o",
    "out",
    "--engine",
    "none",
    "--engines",
    "none",
)
SHAPE = ("--input-shape", "3,8,8")


@pytest.fixture
def collected(project: Path, cli: Callable[..., Any]) -> Path:
    """A project where only the statistics are left of the data."""
    result = cli(*COLLECT)
    assert result.exit_code == 0, result.output
    assert "no samples)" in result.stdout
    (project / "data.npz").rename(project / "elsewhere.npz")
    return project


def other_data(project: Path) -> str:
    """Pictures that are nothing like those of the statistics."""
    images = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    images[:, ::2] = 255
    images[np.arange(30), np.arange(30) % 8, :, np.arange(30) % 3] = 128
    np.savez(project / "other.npz", images=images)
    return "other.npz"


def planned(folder: str = "out") -> Plan:
    return Plan.load(Path(folder) / "plan.yaml")


def test_compress_from_a_file_alone(collected: Path, cli: Callable[..., Any]) -> None:
    result = cli(*COMPRESS, *SHAPE, "--json", "-")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    figures = document["figures"]
    assert figures["compressed"]["macs"] <= 0.5 * figures["dense"]["macs"]
    assert not {"agreement", "top1"} & (figures["dense"].keys() | figures["compressed"].keys())
    assert document["measured_on"] == "random inputs of 3x8x8"
    assert "accuracy and agreement are not known" in result.stderr
    assert not document["held_out"]


def test_it_is_the_one_shot_network_of_whoever_has_the_data(collected: Path, cli: Callable[..., Any]) -> None:
    assert cli(*COMPRESS, *SHAPE, "--batch", "2").exit_code == 0
    own = (
        "compress",
        *MODEL[:1],
        "elsewhere.npz",
        *MODEL[1:],
        "--keep",
        "macs=0.5",
        "--engine",
        "none",
        "--method",
        "one-shot",
    )
    assert cli(*own, "--engines", "none", "-o", "own").exit_code == 0
    assert Path("own/plan.yaml").read_text() == Path("out/plan.yaml").read_text()
    assert Path("own/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_a_test_set_gives_the_shape_and_the_accuracy(collected: Path, cli: Callable[..., Any]) -> None:
    result = cli(*COMPRESS, "--test", "elsewhere.npz", "--json", "-")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert not document["held_out"]  # a file of statistics does not say what samples it is of
    assert {"top1", "agreement"} <= document["figures"]["compressed"].keys()


def test_apply_from_a_file_alone(collected: Path, cli: Callable[..., Any]) -> None:
    assert cli(*COMPRESS, *SHAPE).exit_code == 0
    result = cli("apply", MODEL[0], "out/plan.yaml", *MODEL[1:], "--stats", "s.safetensors", *SHAPE, "-o", "again")
    assert result.exit_code == 0, result.output
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_what_is_missing_is_named(collected: Path, cli: Callable[..., Any]) -> None:
    for words, message in (
        ((), "what does an input look like? Give --input-shape"),
        ((*SHAPE, "--method", "sequential"), "--method sequential runs over the data"),
        ((*SHAPE, "--shrink", "auto"), "--shrink auto chooses on DATA"),
        ((*SHAPE, "--shrink", "2"), "--shrink '2' is neither auto nor a number from 0"),
        ((*SHAPE, "--shrink", "some"), "--shrink 'some' is neither auto nor a number from 0"),
    ):
        result = cli(*COMPRESS, *words)
        assert result.exit_code == 2
        assert message in result.stderr
    Path("s.safetensors").unlink()
    result = cli(*COMPRESS, *SHAPE)
    assert result.exit_code == 2
    assert "name DATA or an existing --stats FILE" in result.stderr
    assert not Path("out").exists()


def test_data_beside_a_file_chooses_the_shrinkage_of_one_shot_fits(collected: Path, cli: Callable[..., Any]) -> None:
    """Unasked where the file may be of other data and the fits follow it; by its own pictures nothing is shrunk."""
    words = (*COMPRESS[:1], MODEL[0], other_data(collected), *MODEL[1:], *COMPRESS[4:])
    result = cli(*words, "--method", "one-shot")
    assert result.exit_code == 0, result.output
    assert f"shrinkage towards the weight metric: {planned().shrink:g}, chosen on other.npz" in result.stdout
    assert planned().shrink > 0
    assert cli(*words, "--method", "one-shot", "--shrink", "0").exit_code == 0
    assert planned().shrink == 0
    assert cli(*words).exit_code == 0
    assert planned().shrink == 0, "sequential fits follow DATA itself"
    assert cli(*words, "--shrink", "auto").exit_code == 0
    assert planned().shrink > 0, "asked for, the ranks follow it"
    own = (*COMPRESS[:1], MODEL[0], "elsewhere.npz", *MODEL[1:], *COMPRESS[4:], "--method", "one-shot")
    assert cli(*own).exit_code == 0
    assert planned().shrink <= 0.03


def test_the_share_of_a_plan_is_applied(collected: Path, cli: Callable[..., Any]) -> None:
    plan = ("plan", MODEL[0], *MODEL[1:], "--stats", "s.safetensors", *SHAPE, "--keep", "macs=0.5", "--engine", "none")
    assert cli(*plan, "--shrink", "0.25", "-o", "p.yaml").exit_code == 0
    assert Plan.load("p.yaml").shrink == 0.25
    apply = ("apply", MODEL[0], "p.yaml", *MODEL[1:], "--stats", "s.safetensors", *SHAPE, "--engines", "none")
    assert cli(*apply, "-o", "a").exit_code == 0
    assert cli(*apply, "--shrink", "0", "-o", "b").exit_code == 0
    assert (planned("a").shrink, planned("b").shrink) == (0.25, 0.0)
    assert Path("a/model.safetensors").read_bytes() != Path("b/model.safetensors").read_bytes()


def test_rows_are_written_only_when_asked_for_and_announced(project: Path, cli: Callable[..., Any]) -> None:
    few = (*COLLECT, "--samples", "10", "--json", "c.json")
    result = cli(*few)
    assert result.exit_code == 0, result.output
    assert "10 rows were seen for 32 inputs" in result.stderr
    assert Statistics.load("s.safetensors").with_rows == ()
    result = cli(*few, "--rows")
    assert "holds activations of single samples for 2 of 4 sites" in result.stderr
    assert "rows of 2 layers" in result.stdout
    assert json.loads(Path("c.json").read_text())["with_rows"] == list(Statistics.load("s.safetensors").with_rows)


def test_a_layer_too_wide_for_a_moment_is_the_users_decision(project: Path, cli: Callable[..., Any]) -> None:
    Path("wide.py").write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(8200, 3))\n")
    np.savez("wide.npz", inputs=np.zeros((4, 8200), dtype=np.float32))
    words = ("collect", "wide.py:build", "wide.npz", "-o", "w.safetensors")
    result = cli(*words)
    assert result.exit_code == 2
    assert "site '0' has 8,200 inputs" in result.stderr
    assert "--ignore 0 leaves it out" in result.stderr
    assert not Path("w.safetensors").exists()
    assert cli(*words, "--rows").exit_code == 0
    assert Statistics.load("w.safetensors").with_rows == ("0",)
    assert cli(*words[:-1], "pictures").exit_code == 2


def test_ignored_layers_are_not_in_the_file(project: Path, cli: Callable[..., Any]) -> None:
    assert cli(*COLLECT, "--ignore", "re:[79]").exit_code == 0
    assert set(Statistics.load("s.safetensors")) == {"0", "3"}
    result = cli(*COMPRESS, *SHAPE)
    assert result.exit_code == 2
    assert "the statistics hold nothing for site '7'" in result.stderr
    assert cli(*COMPRESS, *SHAPE, "--ignore", "re:[79]").exit_code == 0
    assert torch.isfinite(Statistics.load("s.safetensors")["3"].second_GDD).all()

"""Every command on a small network of the user's own, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MODEL = ("nets.py:build", "--weights", "net.pt")


def read(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.fixture
def compressed(project: Path, cli: Callable[..., Any]) -> Path:
    result = cli(
        "compress",
        "nets.py:build",
        "data.npz",
        *MODEL[1:],
        "--keep",
        "macs=0.5",
        "-o",
        "out",
        "--engines",
        "torch",
        "--json",
        "c.json",
    )
    assert result.exit_code == 0, result.output
    return project / "out"


def test_inspect(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", *MODEL, "--input-shape", "3,8,8", "--json", "-")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["command"] == "inspect"
    rows = {row["name"]: row for row in document["sites"]}
    assert list(rows) == ["0", "3", "7", "9"]
    assert rows["3"]["weight_shape"] == [32, 16, 3, 3]
    assert rows["3"]["macs"] == 32 * 16 * 9 * 4 * 4
    assert rows["9"]["params"] == 24 * 5 + 5
    assert document["total_macs"] == sum(row["macs"] for row in rows.values())
    for row in rows.values():
        assert 1 <= row["stable_rank"] <= row["effective_rank"] <= min(row["weight_shape"][0], 144)
    assert "break-even" in result.stderr


def test_inspect_reads_the_shape_from_data(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", *MODEL, "--data", "pictures", "--json", "i.json")
    assert result.exit_code == 0, result.output
    assert read("i.json")["total_params"] == sum(row["params"] for row in read("i.json")["sites"])
    assert "32x16x3x3" in result.stdout


def test_compress_writes_an_artifact_a_plan_and_figures(compressed: Path) -> None:
    written = {file.name for file in compressed.iterdir()}
    assert written == {"rankwise.json", "model.safetensors", "plan.yaml", "run.yaml"}
    document = read("c.json")
    dense, small = document["figures"]["dense"], document["figures"]["compressed"]
    assert small["macs"] <= 0.5 * dense["macs"]
    assert small["params"] < dense["params"]
    assert small["macs"] == document["plan"]["planned"]["macs"]
    assert small["params"] == document["plan"]["planned"]["params"]
    assert 0 <= small["agreement"] <= 100
    assert {"top1", "latency_torch_ms"} <= small.keys()
    # Five classes: the label is always among the best five.
    assert "top5" not in small
    assert not document["held_out"]
    assert read(compressed / "rankwise.json")["figures"]["compressed"]["macs"] == small["macs"]


def test_compress_with_every_option(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(
        "compress", "nets.py:build", "pictures", *MODEL[1:], "--keep", "params=60%", "-o", "out", "--test", "data.npz",
        "--formats", "svd,tucker2", "--ignore", "9", "--include", "[0379]", "--pin", "3=tucker2:6,10", "--cap", "7=12",
        "--floor", "7=4", "--round-to", "2", "--method", "one-shot", "--stats", "stats.safetensors", "--samples", "12",
        "--batch", "5", "--normalise", "symmetric", "--size", "8", "--seed", "3", "--engines", "none",
        "--json", "c.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {row["site"]: row for row in read("c.json")["plan"]["rows"]}
    assert (rows["3"]["format"], rows["3"]["ranks"]) == ("tucker2", [6, 10])
    assert rows["9"]["format"] == "dense"
    assert rows["7"]["format"] == "svd"
    assert 4 <= rows["7"]["ranks"][0] <= 12
    assert not read("c.json")["held_out"]  # the array file holds the pictures of the folder
    assert read("c.json")["same_samples"]["calibration"] == 12
    assert Path("stats.safetensors").exists()


def test_a_plan_is_written_edited_and_applied(project: Path, cli: Callable[..., Any]) -> None:
    written = cli(
        "plan", "nets.py:build", "data.npz", *MODEL[1:], "--keep", "macs=0.5", "-o", "plan.yaml", "--json", "p.json"
    )
    assert written.exit_code == 0, written.output
    plan = yaml.safe_load(Path("plan.yaml").read_text())
    assert plan["keep"] == {"macs": 0.5}
    edited = {"3": ("svd", [7]), "0": ("dense", []), "7": ("dense", []), "9": ("dense", [])}
    for row in plan["rows"]:
        row["format"], row["ranks"] = edited[row["site"]]
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    applied = cli(
        "apply",
        "nets.py:build",
        "plan.yaml",
        "data.npz",
        *MODEL[1:],
        "-o",
        "out",
        "--engines",
        "none",
        "--json",
        "a.json",
    )
    assert applied.exit_code == 0, applied.output
    figures = read("a.json")["figures"]
    # 3x3 convolution from 16 to 32 channels at rank 7: seven 3x3 filters and a 1x1, on 4x4 positions.
    dense, small = (32 * 16 * 9) * 16, (7 * 16 * 9 + 32 * 7) * 16
    assert figures["dense"]["macs"] - figures["compressed"]["macs"] == dense - small
    assert read("a.json")["plan"]["planned"]["macs"] == figures["compressed"]["macs"]
    assert yaml.safe_load(Path("out/plan.yaml").read_text())["rows"][1]["ranks"] == [7]


def test_a_plan_from_weights_alone_needs_no_data(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(
        "plan",
        *MODEL,
        "--metric",
        "weight",
        "--input-shape",
        "3,8,8",
        "--keep",
        "macs=0.6",
        "--engine",
        "none",
        "--json",
        "-",
    )
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["planned"]["macs"] <= 0.6 * plan["dense"]["macs"]
    assert Path("plan.yaml").exists()


def test_a_plan_from_stored_statistics(project: Path, cli: Callable[..., Any]) -> None:
    common = (
        "plan",
        "nets.py:build",
        "data.npz",
        *MODEL[1:],
        "--stats",
        "s.safetensors",
        "--engine",
        "none",
        "--json",
        "-",
    )
    first = cli(*common, "--keep", "macs=0.5", "-o", "a.yaml")
    assert first.exit_code == 0, first.output
    again = cli(*common, "--keep", "macs=0.5", "-o", "b.yaml")
    assert "read from s.safetensors" in again.stderr
    assert Path("a.yaml").read_text() == Path("b.yaml").read_text()


def test_evaluate_agrees_with_compress(compressed: Path, cli: Callable[..., Any]) -> None:
    result = cli(
        "evaluate", "nets.py:build", "data.npz", *MODEL[1:], "--artifact", "out", "--engines", "none", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    figures, before = json.loads(result.stdout)["figures"], read("c.json")["figures"]
    for key in ("params", "macs", "bytes", "top1", "agreement"):
        assert figures["compressed"][key] == before["compressed"][key]
    alone = cli(
        "evaluate", "nets.py:build", "data.npz", *MODEL[1:], "--samples", "10", "--engines", "none", "--json", "-"
    )
    assert set(json.loads(alone.stdout)["figures"]) == {"dense"}


def test_evaluate_leaves_out_accuracy_where_folders_are_not_the_classes(project: Path, cli: Callable[..., Any]) -> None:
    (project / "pictures" / "fox").mkdir()
    for file in (project / "pictures" / "ape").iterdir():
        (project / "pictures" / "fox" / file.name).write_bytes(file.read_bytes())
    result = cli("evaluate", "nets.py:build", "pictures", *MODEL[1:], "--engines", "none", "--json", "-")
    assert result.exit_code == 0, result.output
    assert "6 class folders, the network has 5 outputs" in result.stderr
    assert "top1" not in json.loads(result.stdout)["figures"]["dense"]


def test_export_takes_the_shape_from_the_artifact(compressed: Path, cli: Callable[..., Any]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = cli("export", "nets.py:build", "--artifact", "out", "-o", "model.onnx", "--json", "e.json")
    assert result.exit_code == 0, result.output
    onnx.checker.check_model("model.onnx")
    assert read("e.json")["bytes"] == Path("model.onnx").stat().st_size


def test_the_same_seed_gives_the_same_bytes(project: Path, cli: Callable[..., Any]) -> None:
    for folder in ("a", "b"):
        result = cli(
            "compress",
            "nets.py:build",
            "data.npz",
            *MODEL[1:],
            "--keep",
            "macs=0.5",
            "--samples",
            "20",
            "--engines",
            "none",
            "-o",
            folder,
        )
        assert result.exit_code == 0, result.output
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_batches_of_a_function(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(
        "compress",
        "nets.py:build",
        "nets.py:batches",
        *MODEL[1:],
        "--keep",
        "macs=0.5",
        "--engines",
        "none",
        "-o",
        "out",
        "--json",
        "-",
    )
    assert result.exit_code == 0, result.output
    assert "top1" in json.loads(result.stdout)["figures"]["dense"]


@pytest.mark.long
def test_demo(project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    import rankwise.demo

    monkeypatch.setattr(rankwise.demo, "EPOCHS", 2)
    result = cli("demo", "-o", "demo-out")
    assert result.exit_code == 0, result.output
    report = read("demo-out/report.json")
    assert report["held_out"]
    assert report["figures"]["compressed"]["macs"] <= report["figures"]["dense"]["macs"] / 3
    assert report["figures"]["compressed"]["top1"] > 80
    assert "report.json" in result.stdout
    # The command that the demo ends with works.
    command = result.stdout.strip().rpartition("rankwise ")[2].split()
    again = cli(*command, "--engines", "none", "--json", "-")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["figures"]["compressed"]["top1"] == report["figures"]["compressed"]["top1"]

"""What a user is told where something is wrong: one line, no traceback, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

COMPRESS = (
    "compress",
    "nets.py:build",
    "data.npz",
    "--weights",
    "net.pt",
    "--engine",
    "none",
    "--engines",
    "none",
    "-o",
    "out",
)
BUDGET = ("--keep", "macs=0.5")

# Importing it here would fail beside a CPU torch: that needs the shim.
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


def assert_refused(result: Any, *texts: str) -> None:
    """One `error:` line on standard error that holds the texts, exit code 2, nothing on standard output."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for text in texts:
        assert text in lines[0]


def test_missing_files(project: Path, cli: Callable[..., Any]) -> None:
    assert_refused(cli("inspect", "nope.py:build"), "there is no file nope.py")
    assert_refused(cli("inspect", "nets.py:build", "--weights", "nope.pt"), "no weights file nope.pt")
    assert_refused(cli("compress", "nets.py:build", "nope.npz", *BUDGET, "-o", "out"), "there is no file nope.npz")
    assert_refused(cli("compress", "nets.py:build", "nope/", *BUDGET, "-o", "out"), "no such folder or file")
    assert_refused(cli("apply", "nets.py:build", "nope.yaml", "data.npz", "-o", "out"), "nope.yaml")


def test_timm_that_is_not_there(project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert_refused(cli("inspect", "timm:vit_tiny_patch16_224"), "timm: models need timm", "rankwise[timm]")
    assert_refused(
        cli("inspect", "nets.py:build", "--random-weights"), "--random-weights is for timm: models", "not for nets.py"
    )


@needs_torchvision
def test_unknown_models(project: Path, cli: Callable[..., Any]) -> None:
    assert_refused(cli("inspect", "torchvision:resnet19"), "no model 'resnet19'", "resnet18")
    assert_refused(cli("inspect", "nets.py:built", "--input-shape", "3,8,8"), "no function 'built'", "build")
    assert_refused(cli("inspect", "resnet18"), "MODEL 'resnet18' is neither", "torchvision:resnet18")
    assert_refused(cli("inspect", "nets.py:not_a_network"), "returned a int")
    assert_refused(cli("inspect", "nets.py:build"), "--input-shape 3,224,224")
    Path("broken.py").write_text("def build(:\n")
    assert_refused(cli("inspect", "broken.py:build"), "broken.py is not valid Python")


def test_weights_of_another_network(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", "nets.py:wider", "--weights", "net.pt", "--input-shape", "3,8,8")
    assert_refused(result, "net.pt does not fit nets.py:wider", "not in the model", "other shape", "Nothing was loaded")


def test_constraints(project: Path, cli: Callable[..., Any]) -> None:
    assert_refused(cli(*COMPRESS, *BUDGET, "--formats", "svd,cp9"), "cp9", "spatial_svd")
    assert_refused(cli(*COMPRESS, *BUDGET, "--ignore", "features.*"), "features.*")
    assert_refused(cli(*COMPRESS, *BUDGET, "--pin", "33=svd:4"), "33", "3")
    assert_refused(cli(*COMPRESS, *BUDGET, "--pin", "3=svd"), "svd")
    assert_refused(
        cli(*COMPRESS, *BUDGET, "--formats", "svd,stt:slice=4"), "--formats", "no setting 'slice'", "slices=4"
    )
    assert_refused(cli(*COMPRESS, *BUDGET, "--pin", "3=stt:slices=1:2,2"), "--pin 3=stt", "slices is '1'", "slices=4")
    assert_refused(cli(*COMPRESS, *BUDGET, "--pin", "3=stt:slices=4"), "no ranks", "stt:slices=4:8,8")
    assert_refused(cli(*COMPRESS, *BUDGET, "--metric", "energy"), "energy")
    assert_refused(cli(*COMPRESS[:-4], "-o", "out", *BUDGET, "--engines", "tpu"), "--engines 'tpu'")
    assert_refused(cli(*COMPRESS, *BUDGET, "--method", "greedy"), "--method 'greedy'")
    assert_refused(cli(*COMPRESS, "--keep", "flops=0.5"), "--keep 'flops=0.5'")
    assert not Path("out").exists()


def test_a_budget_that_cannot_be_met(project: Path, cli: Callable[..., Any]) -> None:
    assert_refused(cli(*COMPRESS, "--keep", "macs=0.0001"), "cannot be met", "at least")
    assert not Path("out").exists()


def test_data_that_cannot_be_used(project: Path, cli: Callable[..., Any]) -> None:
    Path("empty").mkdir()
    assert_refused(cli("compress", "nets.py:build", "empty", *BUDGET, "-o", "out"), "empty holds no pictures")
    assert_refused(cli(*COMPRESS, *BUDGET, "--transform", "flip"), "cannot read 'flip'")
    assert_refused(cli(*COMPRESS, *BUDGET, "--normalise", "imagnet"), "--normalise 'imagnet'")
    assert_refused(cli("plan", "nets.py:build", *BUDGET, "--input-shape", "3,8,8"), "needs data", "--metric weight")


@needs_torchvision
def test_torchvision_data_that_is_not_on_disk(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("compress", "nets.py:build", "torchvision:CIFAR10", "--root", "here", *BUDGET, "-o", "out")
    assert_refused(result, "torchvision.datasets.CIFAR10('here', train=True, download=True)")
    result = cli("compress", "nets.py:build", "torchvision:CIFAR11", *BUDGET, "-o", "out")
    assert_refused(result, "no data set 'CIFAR11'", "CIFAR10")
    result = cli("evaluate", "nets.py:build", "torchvision:FGVCAircraft", "--split", "val", "--root", "here")
    assert_refused(result, "split='val'")


def test_a_folder_with_other_content_is_not_written_to(project: Path, cli: Callable[..., Any]) -> None:
    assert_refused(cli(*COMPRESS[:-1], "pictures", *BUDGET), "-o pictures is not empty")
    assert_refused(cli(*COMPRESS[:-1], "net.pt", *BUDGET), "-o net.pt is a file")


def test_damaged_artifacts_and_plans(project: Path, cli: Callable[..., Any]) -> None:
    assert cli(*COMPRESS, *BUDGET).exit_code == 0
    weights = Path("out/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert_refused(cli("evaluate", "nets.py:build", "data.npz", "--artifact", "out"), "model.safetensors")
    weights.write_bytes(whole)
    assert_refused(cli("export", "nets.py:wider", "--artifact", "out", "-o", "m.onnx"), "out")
    assert_refused(
        cli("evaluate", "nets.py:build", "data.npz", "--artifact", "pictures"), "pictures is not an artifact"
    )
    text = Path("out/plan.yaml").read_text()
    Path("typo.yaml").write_text(text.replace("site: '3'", "site: '33'"))
    assert_refused(cli("apply", "nets.py:build", "typo.yaml", "data.npz", "-o", "new"), "33")
    Path("list.yaml").write_text("- 3\n")
    assert_refused(cli("apply", "nets.py:build", "list.yaml", "data.npz", "-o", "new"), "list.yaml")
    assert_refused(cli("apply", "nets.py:wider", "out/plan.yaml", "data.npz", "-o", "new"), "")
    assert not Path("new").exists()


def test_a_failure_while_measuring_costs_no_work(
    project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no test data")

    monkeypatch.setattr("rankwise.cli.results.measure", broken)
    assert_refused(cli(*COMPRESS, *BUDGET), "no test data")
    written = {file.name for file in Path("out").iterdir()}
    assert written == {"rankwise.json", "model.safetensors", "plan.yaml", "run.yaml"}


def test_a_network_that_rejects_the_data(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", "nets.py:build", "--input-shape", "1,8,8")
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.stderr
    assert "error:" in result.stderr


def test_debug_shows_the_traceback(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", "nets.py:nope", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error:" in result.stderr


def test_anything_else_is_exit_code_1(project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "manual_seed", broken)
    result = cli("inspect", "nets.py:build", "--input-shape", "3,8,8")
    assert result.exit_code == 1
    assert "unexpected RuntimeError: a bug" in result.stderr
    assert "--debug" in result.stderr


def test_a_json_file_that_cannot_be_written(project: Path, cli: Callable[..., Any]) -> None:
    result = cli("inspect", "nets.py:build", "--input-shape", "3,8,8", "--json", "nets.py/i.json")
    assert_refused(result, "nets.py")

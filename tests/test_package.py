"""The package: public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import rankwise as rw


def said(script: str) -> str:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return run.stdout.strip()


def test_importing_it_does_not_import_torch() -> None:
    assert said("import sys, rankwise; print(rankwise.__version__, 'torch' in sys.modules)") == "0.1.0 False"


COMPRESS = ("compress", "nets.py:build", "x.npz", "-o", "o", "--keep")


@pytest.mark.parametrize(
    "words",
    [
        (*COMPRESS, "macs=50"),
        (*COMPRESS, "macs=0.5", "--rule", "knapsak"),
        (*COMPRESS, "macs=0.5", "--floor-rule", "energie:share=0.9"),
        (*COMPRESS, "macs=0.5", "--formats", "svd,tukcer"),
        (*COMPRESS, "macs=0.5", "--pin", "fc=sdv:4"),
        (*COMPRESS, "macs=0.5", "--metric", "inputs"),
        (*COMPRESS, "macs=0.5", "--method", "sequentially"),
        (*COMPRESS, "macs=0.5", "--storage", "zip"),
        (*COMPRESS, "macs=0.5", "--engines", "tensorrt"),
        (*COMPRESS, "latency=0.5", "--engine", "tensorrt"),
        ("plan", "nets.py:build", "x.npz", "-o", "o", "--keep", "latency=0.5", "--engine", "tensorrt"),
        ("pareto", "nets.py:build", "x.npz", "--at", "0.5", "--formats", "svdd"),
        ("apply", "nets.py:build", "plan.yaml", "x.npz", "-o", "o", "--storage", "zip"),
        ("evaluate", "nets.py:build", "x.npz", "--engines", "tensorrt"),
        ("heal", "nets.py:build", "x.npz", "--artifact", "a", "-o", "o", "--metric", "accurcy"),
        ("train", "nets.py:build", "x.npz", "-o", "o", "--engines", "tensorrt"),
        ("roofline", "--engine", "tensorrt", "-o", "cpu.yaml"),
        ("formats", "tukcer"),
    ],
    ids=" ".join,
)
def test_a_mistake_that_needs_no_network_is_told_before_torch_is_imported(words: tuple[str, ...]) -> None:
    script = (
        "import sys; from rankwise.cli.app import app; from typer.testing import CliRunner\n"
        f"result = CliRunner().invoke(app, {list(words)})\n"
        "print(result.exit_code, 'torch' in sys.modules, 'did you mean' in result.output, result.output)"
    )
    code, torch, *_ = said(script).split()
    assert (code, torch) == ("2", "False"), said(script)


@pytest.mark.parametrize("name", rw.__all__)
def test_every_public_name_is_there_and_no_module_hides_it(name: str) -> None:
    value = getattr(rw, name)
    assert isinstance(value, ModuleType) == (name in ("evaluate", "export", "kernels", "training"))
    assert name in dir(rw)


@pytest.mark.parametrize(
    "first", ["rankwise.planning.choose", "rankwise.session", "rankwise.network.find", "rankwise.planning.planner"]
)
def test_importing_a_module_first_hides_no_function(first: str) -> None:
    names = "choose, compress, factorise, find, pareto, profile"
    assert said(f"import {first}; from rankwise import {names}; print(all(map(callable, ({names}))))") == "True"


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rw.nothing

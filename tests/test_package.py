"""The package: public names, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import pytest

import rankwise as rw


def said(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout.strip()


def test_importing_it_does_not_import_torch() -> None:
    assert said("import sys, rankwise; print(rankwise.__version__, 'torch' in sys.modules)") == "0.1.0 False"


def test_help_does_not_import_torch() -> None:
    script = "from rankwise.cli.app import app; from typer.testing import CliRunner; import sys\n"
    script += "print(CliRunner().invoke(app, ['--help']).exit_code, 'torch' in sys.modules)"
    assert said(script) == "0 False"


COMPRESS = ("compress", "nets.py:build", "x.npz", "-o", "o", "--keep")
MISTAKES = [
    (*COMPRESS, "macs=50"),
    (*COMPRESS, "macs=0.5", "--rule", "knapsak"),
    (*COMPRESS, "macs=0.5", "--floor-rule", "energie:share=0.9"),
    (*COMPRESS, "macs=0.5", "--formats", "svd,tukcer"),
    (*COMPRESS, "macs=0.5", "--pin", "fc=sdv:4"),
    (*COMPRESS, "macs=0.5", "--metric", "inputs"),
    (*COMPRESS, "macs=0.5", "--method-set", "svdllm"),
    (*COMPRESS, "macs=0.5", "--method", "sequentially"),
    (*COMPRESS, "macs=0.5", "--storage", "zip"),
    (*COMPRESS, "macs=0.5", "--engines", "tensorrt"),
    (*COMPRESS, "latency=0.5", "--engine", "tensorrt"),
    ("plan", "nets.py:build", "x.npz", "-o", "o", "--keep", "latency=0.5", "--engine", "tensorrt"),
    ("pareto", "nets.py:build", "x.npz", "--at", "0.5", "--formats", "svdd"),
    ("apply", "nets.py:build", "plan.yaml", "x.npz", "-o", "o", "--storage", "zip"),
    ("evaluate", "nets.py:build", "x.npz", "--engines", "tensorrt"),
    ("evaluate", "hf:tiny", "x.txt", "--engines", "none", "--stride", "4"),
    ("heal", "nets.py:build", "x.npz", "--artifact", "a", "-o", "o", "--metric", "accurcy"),
    ("train", "nets.py:build", "x.npz", "-o", "o", "--engines", "tensorrt"),
    ("train", "nets.py:build", "x.npz", "-o", "o", "--technique", "maestros"),
    ("roofline", "--engine", "tensorrt", "-o", "cpu.yaml"),
    ("formats", "tukcer"),
]
TOLD = """
import json, sys
from rankwise.cli.app import app
from typer.testing import CliRunner
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    print(json.dumps([" ".join(words), result.exit_code, "torch" in sys.modules, result.output]))
    if "torch" in sys.modules:
        break
"""


def test_mistakes_that_need_no_network_are_told_before_torch_is_imported() -> None:
    """One process for all of them, up to the one that imports it."""
    told = [json.loads(line) for line in said(TOLD, json.dumps(MISTAKES)).splitlines()]
    assert [(words, code, torch, output) for words, code, torch, output in told if (code, torch) != (2, False)] == []
    assert [words for words, *_ in told] == [" ".join(words) for words in MISTAKES]


@pytest.mark.parametrize("name", rw.__all__)
def test_every_public_name_is_there_and_no_module_hides_it(name: str) -> None:
    value = getattr(rw, name)
    assert isinstance(value, ModuleType) == (name in ("evaluate", "export", "kernels", "training"))
    assert name in dir(rw)


@pytest.mark.parametrize("first", ["rankwise.planning.choose", "rankwise.session"])
def test_importing_a_module_first_hides_no_function(first: str) -> None:
    names = "choose, compress, factorise, find, pareto, profile"
    assert said(f"import {first}; from rankwise import {names}; print(all(map(callable, ({names}))))") == "True"


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rw.nothing


WITHOUT_NUMPY = """
import sys
from importlib.machinery import PathFinder


class Without:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "numpy" else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
import warnings

with warnings.catch_warnings():  # what PyTorch says of itself when it is imported
    warnings.simplefilter("ignore")
    import torch
    import torch.fx.experimental.proxy_tensor
warnings.simplefilter("error")
import rankwise as rw

model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
data = [torch.randn(16, 8)]
sites = rw.find(model, data[0][:1])
stats = rw.collect(model, data)
plan = rw.choose(model, stats, keep={"params": 0.8})
small = rw.factorise(model, plan, data=data)
print(len(sites), len(plan.factorised) > 0, "numpy" in sys.modules)
"""


def test_without_numpy_verbs_run_and_warn_of_nothing() -> None:
    assert said(WITHOUT_NUMPY) == "2 True False"

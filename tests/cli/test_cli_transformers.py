"""A language model from its folder and a file of text to a smaller one, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise as rw
from rankwise.inputs.models import load_model

pytest.importorskip("transformers")
from support.words import TEXT, save_model  # needs transformers

Run = Callable[..., Any]


@pytest.fixture
def run(cli: Run) -> Run:
    """Run a command line that ends with the given code."""

    def running(*arguments: str, code: int = 0) -> Any:
        done = cli(*arguments)
        assert done.exit_code == code, done.output
        return done

    return running


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(TEXT)
    Path("held.txt").write_text(TEXT[: len(TEXT) // 2])
    save_model(tmp_path / "tiny")
    return "hf:tiny"


def test_from_folder_and_text_to_a_smaller_model(model: str, run: Run) -> None:
    done = run("compress", model, "words.txt", "--test", "held.txt", "--keep", "linear=0.7", "-o", "out", "--json", "-")
    found = json.loads(done.stdout)
    assert found["plan"]["planned"]["linear"] <= 0.7 * found["plan"]["dense"]["linear"]
    assert found["plan"]["rule"] == "fisher"
    formats = {row["site"]: row["format"] for row in found["plan"]["rows"]}
    assert formats["model.layers.0.mlp.gate_proj"] == "nystrom"
    assert formats["model.embed_tokens"] == formats["lm_head"] == "dense"
    figures = found["figures"]
    assert figures["compressed"]["perplexity"] > 1
    assert figures["dense"]["perplexity"] > 1
    small = rw.load(load_model(model), "out")
    tokens = torch.arange(6)[None]
    assert small.generate(tokens, max_new_tokens=4, do_sample=False).shape == (1, 10)


def test_the_same_plan_is_edited_and_applied(model: str, run: Run) -> None:
    run("plan", model, "words.txt", "--keep", "linear=0.7", "-o", "plan.yaml")
    plan = rw.Plan.load(Path("plan.yaml"))
    run("apply", model, "plan.yaml", "words.txt", "-o", "out")
    small = rw.load(load_model(model), "out")
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    run("verify", "out")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("words.txt", "--refit-samples", "4"), "all 7 rows of words.txt are calibration samples; give more text"),
        (("words.txt", "--refit-samples", "-1"), "--refit-samples -1 must be 0 or more"),
        (("--stats", "there.safetensors", "--refit-samples", "4"), "takes rows of text; DATA is not given"),
    ],
)
def test_further_rows_that_there_are_not(arguments: tuple[str, ...], words: str, model: str, run: Run) -> None:
    run("collect", model, "words.txt", "-o", "there.safetensors")
    done = run("compress", model, *arguments, "--keep", "linear=0.7", "-o", "out", code=2)
    assert words in " ".join(done.output.split())


def test_layers_by_themselves_and_other_rules(model: str, run: Run) -> None:
    run("plan", model, "words.txt", "--rule", "knapsack", "--keep", "params=0.9", "-o", "plan.yaml")
    assert rw.Plan.load(Path("plan.yaml")).rule == "knapsack"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("hf:tinny", "words.txt"), "hf:tinny cannot be read"),
        (("hf:./tinny", "words.txt"), "there is no such folder; near names are: tiny"),
        (("hf:tiny", "word.txt"), "there is no file word.txt"),
        (("hf:tiny", "words.txt", "--length", "99"), "--length 99 is more than the 64 tokens"),
    ],
)
def test_what_is_misspelled_is_told_in_one_line(arguments: tuple[str, ...], words: str, model: str, run: Run) -> None:
    done = run("compress", *arguments, "--keep", "linear=0.7", "-o", "out", code=2)
    assert words in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_a_budget_of_time_plans_single_layers(model: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("device.yaml").write_text("name: paper\npeak: 1.0e+9\nbandwidth: 1.0e+9\ntile: 1\noverhead: 1.0e-7\n")
    run(
        *("plan", model, "words.txt", "--keep", "latency=0.9", "--engine", "roofline:device.yaml"),
        *("--rule", "knapsack", "-o", "plan.yaml"),
    )
    assert not any(row.format == "nystrom" for row in rw.Plan.load(Path("plan.yaml")).rows)


@pytest.mark.slow  # an exporter takes ten seconds
def test_exported(model: str, run: Run) -> None:
    pytest.importorskip("onnxruntime")
    run("compress", model, "words.txt", "--keep", "linear=0.7", "-o", "out")
    run("export", model, "--artifact", "out", "--data", "words.txt", "-o", "small.onnx")
    assert Path("small.onnx").stat().st_size > 0


@pytest.mark.slow  # as long as a step takes, and everything is judged twice
def test_healed(model: str, run: Run) -> None:
    run("compress", model, "words.txt", "--keep", "linear=0.6", "-o", "out")
    done = run(
        *("heal", model, "words.txt", "--artifact", "out", "--minutes", "0.05", "-o", "healed", "--json", "-"),
    )
    assert json.loads(done.stdout)["figures"]["compressed"]["perplexity"] > 1

"""A language model from its folder and a file of text to a smaller one, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise as rw
from rankwise.evaluate import cache_bytes, surprise, windows
from rankwise.inputs.models import load_model
from rankwise.inputs.text import text_tokens

pytest.importorskip("transformers")
import transformers
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
    back = transformers.AutoModelForCausalLM.from_pretrained("out")
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, small(tokens).logits)
    assert transformers.AutoTokenizer.from_pretrained("out")("the cat").input_ids


@pytest.mark.slow  # compress and export once more
def test_uniform_widths_give_an_ordinary_checkpoint(model: str, run: Run) -> None:
    run("compress", model, "words.txt", "--keep", "linear=0.8", "--uniform", "-o", "out")
    widths = {row.ranks for row in rw.Plan.load(Path("out/plan.yaml")).factorised}
    done = run("export", model, "--artifact", "out", "--to", "transformers", "-o", "plain", "--json", "-")
    assert json.loads(done.stdout)["ordinary"]
    config = json.loads(Path("plain/config.json").read_text())
    assert (config["model_type"], {(config["intermediate_size"],)}) == ("llama", widths)
    assert Path("plain/tokenizer.json").is_file()
    done = run("export", model, "--artifact", "out", "--to", "transformers", "-o", "plain", code=2)
    assert "-o plain must be a new or an empty folder" in done.output.replace("\n", " ")
    done = run("export", model, "--to", "transformers", "-o", "other", code=2)
    assert "--to transformers writes the network of --artifact as it is" in done.output.replace("\n", " ")


@pytest.mark.slow  # compresses once more
def test_coded_weights_are_not_for_transformers(model: str, run: Run) -> None:
    run(
        "compress", model, "words.txt", "--keep", "linear=0.7", "--storage", "entropy", "--engines", "none", "-o", "out"
    )
    assert not Path("out/config.json").exists()


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


QUESTIONS = [
    {"context": "the cat sat on the", "choices": ["mat", "ran dog"], "answer": 0},
    {"context": "the dog ran on the", "choices": ["sat", "log ."], "answer": "log ."},
]


def test_judged_as_the_field_does(model: str, run: Run) -> None:
    """Figures of the command against the functions behind it."""
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    run("compress", model, "words.txt", "--keep", "linear=0.5", "--engines", "none", "-o", "out")
    done = run(
        *("evaluate", model, "held.txt", "--artifact", "out", "--engines", "none", "--length", "8", "--json", "-"),
        *("--context", "16", "--stride", "4", "--choices", "asked.jsonl", "--neighbours", "--generate", "2"),
    )
    found = json.loads(done.stdout)["language"]
    dense = load_model(model)
    small = rw.load(load_model(model), "out")
    tokens = text_tokens(Path("held.txt"), model, dense)
    assert found["windows"]["tokens"] == len(tokens) - 1
    for name, network in (("dense", dense), ("compressed", small)):
        said = surprise(network, windows(tokens, context=16, stride=4))
        assert found["windows"][name] == pytest.approx(said.perplexity, rel=1e-5)
    assert found["windows"]["ratio"]["low"] <= found["windows"]["ratio"]["value"] <= found["windows"]["ratio"]["high"]
    assert found["choices"]["accuracy"]["dense"]["value"] in (0, 50, 100)
    assert 0 < found["neighbours"]["cosine"]["value"] < 1
    one, several = found["generation"]
    assert (one["rows"], one["read"], several["rows"]) == (1, 8, 8)
    held = cache_bytes(dense, tokens[None, :10])
    assert (one["dense"]["cache_bytes"], several["dense"]["cache_bytes"]) == (held, 8 * held)
    assert one["compressed"]["decode_per_second"] > 0


@pytest.mark.parametrize(
    "options, words",
    [
        (("--stride", "4"), "--stride is of windows: give --context N"),
        (("--start-token",), "--start-token has no effect without --context N or --choices"),
        (("--context", "16", "--start-token"), "the tokenizer of hf:tiny has no start token"),
        (("--neighbours",), "name the compressed one with --artifact"),
        (("--choices", "none.jsonl"), "--choices none.jsonl: there is no such file; its lines are"),
    ],
)
def test_judging_that_has_no_effect_is_told(options: tuple[str, ...], words: str, model: str, run: Run) -> None:
    done = run("evaluate", model, "held.txt", "--engines", "none", *options, code=2)
    assert words in done.output.replace("\n", " ")


def test_judging_language_is_for_language_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from torch import nn\ndef build(): return nn.Linear(4, 2)\n")
    torch.save(torch.randn(8, 4), tmp_path / "x.pt")
    how = ("--engines", "none", "--context", "8")
    done = run("evaluate", f"{tmp_path}/nets.py:build", f"{tmp_path}/x.pt", *how, code=2)
    assert "are for hf: models" in done.output.replace("\n", " ")


@pytest.mark.parametrize("name, metric", [("svd_llm", "uncentred"), ("fwsvd", "rows"), ("zs_svd", "uncentred")])
def test_methods_of_the_literature(name: str, metric: str, model: str, run: Run) -> None:
    run("plan", model, "words.txt", "--method-set", name, "--keep", "linear=0.8", "-o", "plan.yaml")
    plan = rw.Plan.load(Path("plan.yaml"))
    assert plan.metric == metric
    assert {row.format for row in plan.factorised} == {"svd"}
    assert plan.planned["linear"] <= 0.8 * plan.dense["linear"]


def test_a_method_of_the_literature_to_the_end(model: str, run: Run) -> None:
    how = ("--keep", "linear=0.8", "--engines", "none", "-o", "out")
    done = run("compress", model, "words.txt", "--method-set", "modegpt", *how, "--json", "-")
    found = json.loads(done.stdout)
    assert {row["format"] for row in found["plan"]["rows"]} == {"dense", "nystrom:order=leverage"}
    assert rw.load(load_model(model), "out")(torch.arange(6)[None]).logits.shape[:2] == (1, 6)


@pytest.mark.parametrize(
    "options, words",
    [
        (("--method-set", "svdllm"), "unknown method set 'svdllm'; did you mean svd_llm"),
        (("--method-set", "svd_llm", "--rule", "knapsack"), "--method-set svd_llm has its own --rule"),
        (("--method-set", "svd_llm", "--metric", "weight"), "--method-set svd_llm has its own --metric"),
        (("--method-set", "svd_llm", "--method", "sequential"), "leave out --method sequential"),
    ],
)
def test_methods_that_contradict(options: tuple[str, ...], words: str, model: str, run: Run) -> None:
    done = run("compress", model, "words.txt", *options, "--keep", "linear=0.8", "-o", "out", code=2)
    assert words in done.output.replace("\n", " ")

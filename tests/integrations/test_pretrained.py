"""`save_pretrained` and `from_pretrained` of compressed networks: the same network, or a clear error."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, batch, made
from torch import nn

import rankwise as rw
from rankwise.layers.kinds import Role
from rankwise.layers.low_rank import LowRank

pytest.importorskip("transformers", exc_type=ImportError)
import transformers

import rankwise.integrations.transformers

# The others run in the slow tests: each takes seconds.
QUICK = ("llama",)
ALL = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]


def compressed(name: str) -> Any:
    """Hidden units and low rank side by side."""
    model = made(name)
    sites = rw.find(model, batch(name, 0), joint=True)
    able = [site for site in sites.values() if not (site.dense_because or site.unless_named)]
    hidden = next(site.name for site in able if site.role is Role.HIDDEN)
    alone = next(site.name for site in able if site.role is Role.LAYER and site.kind in ("linear", "conv1d_hf"))
    pins = {hidden: ("nystrom", (19,)), alone: ("svd", (5,))}
    plan = rw.choose(model, sites, metric="weight", pin=pins, include=list(pins), rule="energy:share=1.0")
    return rw.factorise(model, plan, sites)


def outputs(model: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**given)[0]
    return found


@pytest.fixture(scope="module")
def small() -> Any:
    return compressed("llama")


@pytest.fixture(scope="module")
def saved(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pretrained") / "small"
    small.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ALL)
def test_the_same_network_comes_back(name: str, tmp_path: Path) -> None:
    small, given = compressed(name), batch(name, 1)
    small.save_pretrained(tmp_path / "one")
    auto = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModel", "vit": "AutoModel", "whisper": "AutoModel"}
    for reader in (getattr(transformers, auto.get(name, "AutoModelForCausalLM")), type(small)):
        back = reader.from_pretrained(tmp_path / "one")
        assert type(back) is type(small)
        assert torch.equal(outputs(back, given), outputs(small, given))
    assert back.config.to_dict() == {**back.config.to_dict(), "model_type": small.config.model_type}
    back.save_pretrained(tmp_path / "two")
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()
    if "input_ids" in given and hasattr(small, "generate"):
        how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        assert torch.equal(back.generate(given["input_ids"], **how), small.generate(given["input_ids"], **how))
    back.train()(**given)[0].square().mean().backward()
    chains = [part for part in back.modules() if isinstance(part, LowRank)]
    assert all(parameter.grad is not None for chain in chains for parameter in chain.parameters())


def test_its_body_alone(small: Any, saved: Path, tmp_path: Path) -> None:
    body = transformers.AutoModel.from_pretrained(saved)
    given = batch("llama", 1)
    assert torch.equal(outputs(body, given), outputs(small.model, given))
    body.save_pretrained(tmp_path / "body")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "body")
    assert torch.equal(outputs(whole.model, given), outputs(small.model, given))


@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        (torch.float16, ("svd", "pivoted_svd", "slr")),
        pytest.param(torch.bfloat16, ("slr3", "kronecker", "btd", "ht", "tr", "stt", "cp"), marks=pytest.mark.slow),
    ],
    ids=["fp16", "bf16"],
)
def test_formats_and_ties_in_half_precision(dtype: torch.dtype, formats: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**FAMILIES["llama"][2], "tie_word_embeddings": True, "intermediate_size": 48}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(dtype)
    given = batch("llama", 0)
    sites, pins = rw.find(model, given), {"model.embed_tokens": ("svd", (8,))}
    for format, site in zip(formats, (name for name, site in sites.items() if site.kind == "linear"), strict=False):
        curve = rw.profile(model, sites, formats=[format], metric="weight", only=[site])[site]
        options = [option for option in curve if option.format == format]
        pins[site] = (format, options[len(options) // 2].ranks)
    plan = rw.choose(model, sites, metric="weight", pin=pins, include=list(pins), rule="energy:share=1.0")
    small = rw.factorise(model, plan, sites)
    small.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert back.dtype is dtype
    assert torch.equal(outputs(back, given), outputs(small, given))
    assert back.lm_head[1].weight is back.model.embed_tokens[0].weight
    assert {(name, part.ranks) for name, part in back.named_modules() if isinstance(part, LowRank)} == {
        (name, part.ranks) for name, part in small.named_modules() if isinstance(part, LowRank)
    }


def test_artifacts_are_read_too_and_copies_save(small: Any, tmp_path: Path) -> None:
    given = batch("llama", 1)
    rw.save(small, tmp_path / "out")
    rankwise.integrations.transformers.write_config(copy.deepcopy(small), tmp_path / "out")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(outputs(back, given), outputs(small, given))
    assert torch.equal(outputs(rw.load(made("llama"), tmp_path / "out"), given), outputs(small, given))


def test_importing_it_again_changes_nothing() -> None:
    importlib.reload(rankwise.integrations.transformers)


def test_weights_without_a_factor_are_refused(saved: Path, tmp_path: Path) -> None:
    copytree(saved, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if ".mlp.down_proj." in name and name.endswith(".1.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"the weights lack '{lost}'"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "has version 9 of rankwise's structure"),
        ({"more": 1}, "unknown field 'more'"),
        ({"family": "lama"}, "no known family"),
        ({"structure": [{"names": ["x"]}]}, "field 'kind' is missing"),
    ],
)
def test_a_changed_configuration_is_refused(change: dict[str, Any], message: str, saved: Path, tmp_path: Path) -> None:
    copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


WITHOUT = """
import sys
sys.modules["rankwise"] = sys.modules["torchvision"] = None  # a torchvision that fits this torch is no part of it
import transformers
for reader in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
    try:
        print(type(reader.from_pretrained(sys.argv[1])).__name__)
    except ValueError as error:
        print(" ".join(str(error).split())[:300])
print(sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2]).parameters()))
"""


@pytest.mark.slow  # a second interpreter imports transformers
def test_without_rankwise_it_fails_clearly_and_an_ordinary_one_loads(saved: Path, tmp_path: Path) -> None:
    data = [batch("llama", seed) for seed in range(3)]
    narrow, _ = rw.compress(made("llama"), data, keep={"linear": 0.8}, uniform=True, method="one-shot")
    narrow.save_pretrained(tmp_path / "ordinary")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(saved), str(tmp_path / "ordinary")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    auto, family, count = done.stdout.splitlines()
    assert "model type `rankwise` but Transformers does not recognize" in auto
    assert "import rankwise.integrations.transformers first" in family
    assert int(count) == sum(p.numel() for p in narrow.parameters())

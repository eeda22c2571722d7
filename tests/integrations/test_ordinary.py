"""Uniform widths: ordinary networks of their family, with the outputs of the compressed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import FAMILIES, batch, made

import rankwise as rw
from rankwise.layers.kinds import Role
from rankwise.layers.low_rank import is_factorised

pytest.importorskip("transformers", exc_type=ImportError)
from rankwise.integrations.transformers import ordinary  # needs transformers

# The numbers of each configuration that are the width of a hidden layer.
WIDTHS = {
    **dict.fromkeys(("llama", "qwen2", "mistral", "phi3", "bert", "vit"), ("intermediate_size",)),
    **{"gpt2": ("n_inner",), "opt": ("ffn_dim",), "t5": ("d_ff",), "whisper": ("encoder_ffn_dim", "decoder_ffn_dim")},
}
# A width that the configuration leaves out. The others run in the slow tests.
QUICK = ("gpt2",)
ALL = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]


def narrowed(name: str, kept: int, **wishes: Any) -> Any:
    model = made(name)
    stats = rw.collect(model, [batch(name, seed) for seed in range(3)], joint=True)
    hidden = [site.name for site in stats.sites.values() if site.role is Role.HIDDEN]
    pins = dict.fromkeys(hidden, ("nystrom", (kept,)))
    options = {"pin": pins, "rule": "energy:share=1.0", "uniform": True, **wishes}
    return rw.factorise(model, rw.choose(model, stats, **options), stats)


@pytest.mark.parametrize("name", ALL)
def test_a_narrow_network_is_an_ordinary_one(name: str, tmp_path: Path) -> None:
    small, given = narrowed(name, 37), batch(name, 7)
    plain = ordinary(small)
    assert type(plain) is type(small)
    assert not is_factorised(plain)
    with torch.no_grad():
        assert torch.equal(plain(**given)[0], small(**given)[0])
        small.save_pretrained(tmp_path)
        assert torch.equal(type(small).from_pretrained(tmp_path)(**given)[0], small(**given)[0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert {number for number, value in config.items() if value == 37} == set(WIDTHS[name])
    assert config["model_type"] == small.config.model_type


@pytest.mark.slow  # three networks are compressed
def test_networks_that_are_none_of_their_family() -> None:
    with pytest.raises(
        ValueError, match=r"no 'model\.layers\.0\.mlp\.down_proj\.bias'; fit with metric='without_bias'"
    ):
        ordinary(narrowed("llama", 37, metric="input"))
    with pytest.raises(ValueError, match=r"no factorised layer"):
        ordinary(made("llama"))
    model = made("llama")
    sites = rw.find(model, batch("llama", 0), joint=True)
    first, second = [site.name for site in sites.values() if site.role is Role.HIDDEN]
    how: dict[str, Any] = {"metric": "weight", "rule": "energy:share=1.0"}
    for pins, message in (
        (
            {first: ("nystrom", (9,)), second: ("nystrom", (11,))},
            r"no numbers of LlamaConfig .* 9 of 80, 11 of 80 wide",
        ),
        ({"model.layers.0.self_attn.q_proj": "svd:4"}, r"'model\.layers\.0\.self_attn\.q_proj' is factorised by svd"),
    ):
        small = rw.factorise(model, rw.choose(model, sites, pin=pins, include=list(pins), **how), sites)
        with pytest.raises(ValueError, match=message):
            ordinary(small)

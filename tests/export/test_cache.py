"""Language models in ONNX: without their cache, and with it from call to call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import batch, made
from torch import nn

import rankwise as rw
from rankwise.export.cache import Cached
from rankwise.export.capture import exporting
from rankwise.layers.kinds import Role

pytest.importorskip("transformers", exc_type=ImportError)
# They take ten seconds each. The first has fewer heads of keys than of queries, the second a table of positions.
CAUSAL = ("llama", "gpt2", "phi3", "opt", "qwen2", "mistral")


def narrow(name: str) -> Any:
    model = made(name)
    sites = rw.find(model, batch(name, 0), joint=True)
    hidden = [site.name for site in sites.values() if site.role is Role.HIDDEN]
    pins = dict.fromkeys(hidden, ("nystrom", (19,)))
    plan = rw.choose(model, sites, metric="weight", pin=pins, include=hidden, rule="energy:share=1.0")
    return rw.factorise(model, plan, sites)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_cache_as_tensors_is_the_cache(name: str) -> None:
    """Tokens in two parts, the first of them padded, give what all tokens at once give."""
    model, tokens = made(name), batch(name, 0)["input_ids"]
    cached = Cached(model, ((), {"input_ids": tokens}))
    with torch.no_grad():
        first, past = cached(*cached.given(tokens[:, :5])[0])
        second, both = cached(*cached.given(tokens[:, 5:], past)[0])
        whole = model(input_ids=tokens)
        _, started = cached(*cached.given(tokens[:, :5], hidden=2)[0])
        late, _ = cached(*cached.given(tokens[:, 5:], started, hidden=2)[0])
        alone = model(input_ids=tokens[:1, 2:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1][0], whole.past_key_values.layers[1].keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(late[:1], alone.logits[:, 3:], atol=1e-5, rtol=1e-4)
    inputs, outputs = cached.names
    assert inputs[:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert inputs[-1] == "position_ids"
    assert outputs[:3] == ["logits", "present.0.key", "present.0.value"]


def test_the_network_gives_no_cache_while_it_is_exported() -> None:
    model, given = made("t5"), batch("t5", 0)
    with exporting(model):
        assert "past_key_values" not in model(**given)
    assert model.config.use_cache
    assert "past_key_values" in model(**given)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (lambda: nn.Linear(4, 4), torch.zeros(2, 4), r"Linear has no cache, its forward takes no input_ids"),
        (lambda: made("t5"), batch("t5", 0), r"no cache of keys and values alone"),
        (lambda: made("llama"), {"input_ids": torch.ones(1, 2, dtype=torch.int64)}, r"has 2 tokens; give 3 or more"),
    ],
)
def test_networks_without_such_a_cache(model: Any, given: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=message):
        rw.export.onnx(model(), given, tmp_path / "x.onnx", cache=True)
    with pytest.raises(ValueError, match="dynamic_axes is for networks without cache"):
        rw.export.onnx(model(), given, tmp_path / "x.onnx", cache=True, dynamic_axes="auto")


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_generating_in_onnxruntime(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    small, tokens = narrow(name), batch(name, 0)["input_ids"]
    rw.export.onnx(small, tokens, tmp_path / "small.onnx", cache=True)
    running = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    cached = Cached(small, ((), {"input_ids": tokens}))
    given, wanted = cached.given(tokens)[0], small.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    found = tokens
    for _ in range(6):
        names = [each.name for each in running.get_inputs()]
        leaves = torch.utils._pytree.tree_leaves(given)
        fed = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        logits, *present = map(torch.from_numpy, running.run(None, fed))
        scores = logits[:, -1].index_fill(1, torch.tensor([2]), -torch.inf)  # no end: min_new_tokens
        found = torch.cat([found, scores.argmax(1, keepdim=True)], 1)
        given = cached.given(found[:, -1:], list(zip(present[::2], present[1::2], strict=True)))[0]
    assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_without_the_cache(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert rw.export.onnx(made(name), batch(name, 0), tmp_path / "x.onnx").stat().st_size > 0

"""Adapters of peft on a compressed network: trained, merged, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import batch, made

import rankwise as rw
from rankwise.layers.kinds import Role

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("peft", exc_type=ImportError)
import peft
import transformers

import rankwise.integrations.transformers


@pytest.mark.slow  # training and saving take seconds
def test_adapters_on_chains_and_on_dense_layers(tmp_path: Path) -> None:
    model, given = made("llama"), batch("llama", 0)
    sites = rw.find(model, given, joint=True)
    hidden = next(site.name for site in sites.values() if site.role is Role.HIDDEN)
    pins = {hidden: ("nystrom", (19,)), "model.layers.0.self_attn.q_proj": ("svd", (5,))}
    plan = rw.choose(model, sites, metric="weight", pin=pins, include=list(pins), rule="energy:share=1.0")
    small = rw.factorise(model, plan, sites)
    with torch.no_grad():
        before = small(**given).logits
    # The layers of chains have numbers; v_proj is dense everywhere.
    places = ["q_proj.0", "q_proj.1", "down_proj.1", "v_proj"]
    tuned = peft.get_peft_model(small, peft.LoraConfig(r=2, target_modules=places))
    adapted = {name for name, part in tuned.named_modules() if isinstance(part, peft.tuners.lora.Linear)}
    assert len(adapted) == 5
    optimiser = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        loss = tuned(**given, labels=given["input_ids"]).loss
        loss.backward()
        optimiser.step()
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        after = tuned(**given).logits
    assert not torch.equal(after, before)
    with pytest.raises(ValueError, match="merge adapters"):
        tuned.get_base_model().save_pretrained(tmp_path / "unmerged")
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(back(**given).logits, after, atol=1e-5, rtol=1e-4)

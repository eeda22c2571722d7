"""Hidden units and heads in ten families of transformers: exact at full size, counted, stored, loaded, generating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import FAMILIES, batch, made

import rankwise as rw
from rankwise.layers.kinds import Role

pytest.importorskip("transformers", exc_type=ImportError)

# Gate and up apart, queries, keys and values too; and all fused. The others run in the slow tests: seconds each.
QUICK = ("llama", "phi3")
ALL = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]


@pytest.mark.parametrize("name", ALL)
def test_narrower(name: str, tmp_path: Path) -> None:
    model, data = made(name), [batch(name, seed) for seed in range(6)]
    stats = rw.collect(model, data, joint=True)
    joined = {name: site for name, site in stats.sites.items() if site.feeders}
    heads = [name for name, site in joined.items() if site.role is Role.HEADS]
    assert (len(joined) - len(heads), len(heads)) == FAMILIES[name][3:]
    assert all(site.dense_because is None for site in joined.values())
    options: dict[str, Any] = {"include": list(joined), "rule": "energy:share=1.0"}
    formats = {Role.HIDDEN: "nystrom", Role.HEADS: "head_svd"}
    pins = {name: (formats[site.role], (site.in_features,)) for name, site in joined.items()}
    whole = rw.factorise(model, rw.choose(model, stats, pin=pins, **options), stats)
    with torch.no_grad():
        torch.testing.assert_close(whole(**data[0])[0], model(**data[0])[0], atol=1e-5, rtol=1e-4)
    plan = rw.choose(model, stats, keep={"linear": 0.8}, pin=dict.fromkeys(heads[::2], ("head_svd", (24,))))
    assert {"nystrom", "head_svd"} <= {row.format for row in plan.rows}
    small = rw.factorise(model, plan, stats)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    assert rw.find(small, stats.sites.example).total_macs == plan.planned["macs"]
    rw.save(small, tmp_path / "out")
    loaded = rw.load(made(name), tmp_path / "out", example=data[0])
    with torch.no_grad():
        assert torch.equal(loaded(**data[0])[0], small(**data[0])[0])
    if hasattr(small, "generate") and "input_ids" in data[0]:
        made_up = small.generate(data[0]["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(
            made_up, loaded.generate(data[0]["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        )


@pytest.mark.parametrize("name", ALL)
def test_block_by_block(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Stacks are found in every family, caches and masks included, and give what the whole network gives."""
    model, data = made(name), [batch(name, seed) for seed in range(2)]
    stats = rw.collect(model, data, joint=True)
    plan = rw.choose(model, stats, keep={"linear": 0.7})
    blocks, hooks = (rw.factorise(model, plan, stats, data=data, engine=engine) for engine in ("blocks", "hooks"))
    assert "from the start" not in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(blocks(**data[0])[0], hooks(**data[0])[0], atol=1e-4, rtol=1e-3)

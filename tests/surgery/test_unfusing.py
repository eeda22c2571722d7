"""Fused projections as layers: the same outputs and counts, and an ordinary network for all that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.inputs.torchvision_shim import allow_torchvision
from rankwise.layers.attention import Attention
from rankwise.plan import DENSE

allow_torchvision()
swin = pytest.importorskip("torchvision.models.swin_transformer")
vit = pytest.importorskip("torchvision.models.vision_transformer")

LAYER = {"d_model": 16, "nhead": 2, "dim_feedforward": 32}


class Encoder(nn.Module):
    """A transformer encoder with nested tensors, a mask of padding, and attention of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER, batch_first=True), 1)
        self.pool = nn.MultiheadAttention(12, 2, kdim=16, vdim=16, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        padding = x[..., 0] > 1
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.head(self.pool(x[:, :1, :12], x, x, key_padding_mask=padding)[0][:, 0])


class Both(nn.Module):
    """Encoder and decoder, time first, a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(16, 2, 1, 1, 32)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(x))
        return self.both(x, x.flip(0), tgt_mask=mask, tgt_is_causal=True)


def _swin(**options: Any) -> nn.Module:
    made: nn.Module = swin.SwinTransformer([2, 2], 8, [2], [2], [2, 2], 2.0, 0.0, 0.0, 0.0, 5, **options)
    return made


def _second() -> nn.Module:
    return _swin(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


# Network, shape of a batch, and what its layers are called since.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "vit": (
        lambda: vit.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5),
        (8, 3, 16, 16),
        {"self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj", "self_attention.out_proj"},
    ),
    "swin": (_swin, (8, 3, 8, 8), {"attn.qkv", "attn.proj"}),
    "swin v2": (_second, (8, 3, 8, 8), {"attn.qkv", "attn.proj"}),
    "encoder": (Encoder, (8, 6, 16), {"self_attn.q_proj", "pool.q_proj", "pool.k_proj", "linear1", "linear2"}),
    "both": (Both, (6, 8, 16), {"multihead_attn.q_proj", "multihead_attn.k_proj", "multihead_attn.out_proj"}),
}


def names(*fast: str) -> pytest.MarkDecorator:
    """All networks, of which these are quick enough for every day."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in NETS if name not in fast]
    return pytest.mark.parametrize("name", [*fast, *slow])


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = NETS[name][0]().eval()
    for parameter in made.parameters():
        if not parameter.any():  # biases that begin at zero
            nn.init.normal_(parameter, std=0.1)
    return made


def batches(name: str, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(NETS[name][1], generator=generator) for _ in range(count)]


@names("vit", "swin", "encoder")
def test_same_outputs_counts_and_every_projection_a_site(name: str) -> None:
    model, (x,) = net(name), batches(name)
    made = rw.unfused(model, x)
    torch.backends.mha.set_fastpath_enabled(False)  # which leaves padded positions without numbers
    try:
        with torch.no_grad():
            torch.testing.assert_close(made(x), model(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    before, after = rw.find(model, x), rw.find(made, x)
    assert (after.total_params, after.total_macs) == (before.total_params, before.total_macs)
    assert not after.other_macs
    assert not [site.dense_because for site in after.values() if site.dense_because]
    for ending in NETS[name][2]:
        assert any(site.endswith(ending) for site in after)
    assert not any(isinstance(part, Attention) for part in model.modules())
    assert rw.unfused(made, x) is made


@names("encoder")
def test_compressed_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, data = net(name), batches(name, 3)
    small, report = rw.compress(model, data, keep={"params": 0.7}, example=data[0], method="one-shot")
    assert report.compressed.params == sum(parameter.numel() for parameter in small.parameters())
    assert report.compressed.params <= 0.7 * report.dense.params
    assert report.compressed.macs == report.plan.planned["macs"]
    rw.save(small, tmp_path / "out", plan=report.plan)
    for fresh in (NETS[name][0]().eval(), rw.unfused(NETS[name][0]().eval(), data[0])):
        again = rw.load(fresh, tmp_path / "out", example=data[0])
        with torch.no_grad():
            assert torch.equal(again(data[0]), small(data[0]))
    again.load_state_dict(small.state_dict())
    again.train()(data[0]).sum().backward()


@names("swin")
def test_exact_at_full_rank(name: str) -> None:
    model, (x,) = net(name), batches(name)
    made = rw.unfused(model, x)
    sites = rw.find(made, x)
    full = {site: f"svd:{min(each.weight_shape)}" for site, each in sites.items() if each.kind == "linear"}
    plan = rw.choose(made, sites, keep={"params": 10**9}, metric="weight", pin=full)
    assert {row.site for row in plan.factorised} == full.keys()
    small = rw.factorise(made, plan, sites)
    with torch.no_grad():
        torch.testing.assert_close(small(x), made(x), rtol=1e-4, atol=1e-5)


def test_a_mask_hides_what_is_padded() -> None:
    model, (x,) = net("encoder"), batches("encoder")
    small, _ = rw.compress(model, [x], keep={"params": 0.7}, example=x, method="one-shot")
    x[:, 0, 0] = 0  # the first position is the query
    padding = x[..., 0] > 1
    assert padding.any()
    other = torch.where(padding[..., None], torch.randn_like(x), x)
    other[..., 0] = x[..., 0]  # the mask is read there
    with torch.no_grad():
        torch.testing.assert_close(small(other), small(x))


def test_hidden_units_of_the_encoder_layer() -> None:
    model, data = net("encoder"), batches("encoder", 3)
    small, report = rw.compress(model, data, keep={"params": 0.7}, joint=True, example=data[0], method="one-shot")
    formats = {row.site: row.format for row in report.plan.rows}
    assert formats["encoder.layers.0.linear1"] in ("nystrom", DENSE)
    assert "nystrom" in formats.values()
    assert small(data[0]).shape == (8, 5)


def test_other_modules_keep_their_fused_path() -> None:
    """Only what calls its layers goes without; attention that shares a weight is left as it is."""
    torch.manual_seed(0)
    first, second = (nn.TransformerEncoderLayer(**LAYER, batch_first=True) for _ in range(2))
    first.self_attn.in_proj_weight = second.self_attn.in_proj_weight
    third = nn.TransformerEncoderLayer(**LAYER, batch_first=True)
    model, x = nn.Sequential(first, second, third).eval(), torch.randn(2, 3, 16)
    made = rw.unfused(model, x)
    assert [isinstance(layer.self_attn, Attention) for layer in made] == [False, False, True]
    sites = rw.find(made, x)
    assert "fused path" in str(sites["1.linear1"].dense_because)
    assert sites["2.linear1"].dense_because is None
    assert torch.backends.mha.get_fastpath_enabled()


class Pool(nn.Module):
    """Attention whose query is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pool = nn.Parameter(torch.randn(1, 1, 8)), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.query.expand(len(x), -1, -1), x, x)[0]


def test_a_query_that_is_a_parameter() -> None:
    torch.manual_seed(0)
    model, x = Pool(), torch.randn(2, 3, 8)
    made = rw.unfused(model, x)
    torch.testing.assert_close(made(x), model(x))
    assert list(rw.find(made, x)) == ["pool.q_proj", "pool.k_proj", "pool.v_proj", "pool.out_proj"]


def test_a_network_without_fused_projections_is_returned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert rw.unfused(model, torch.ones(1, 4)) is model


@pytest.mark.parametrize("name", ["encoder", pytest.param("swin", marks=pytest.mark.slow)])
def test_onnx_of_the_compressed_network(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, data = net(name), batches(name)
    small, _ = rw.compress(model, data, keep={"params": 0.7}, example=data[0], method="one-shot")
    file = rw.export.onnx(small, data[0][:2], tmp_path / "small.onnx", dynamic_batch=False)  # checks the outputs
    kept = sum(parameter.numel() for parameter in small.parameters())
    dense = sum(parameter.numel() for parameter in model.parameters())
    assert file.stat().st_size < 4 * (dense + kept) / 2 + 400_000

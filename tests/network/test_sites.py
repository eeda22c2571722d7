from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import rankwise as rw
from rankwise.layers.kinds import Role
from rankwise.network.find import find
from rankwise.network.site import Call, Site
from rankwise.network.sites import Sites, fingerprint
from rankwise.running.guards import unwrap


class Chain(nn.Module):
    """Calls its parts by the given names, in that order."""

    def __init__(self, order: str, **parts: nn.Module) -> None:
        super().__init__()
        self.order = order.split()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


def products(
    model: nn.Module, *inputs: torch.Tensor, operators: tuple[str, ...] = ("convolution", "mm", "addmm")
) -> int:
    """MACs of the named operators, by PyTorch's own counter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = {
        str(operator).removeprefix("aten."): flops for operator, flops in counter.get_flop_counts()["Global"].items()
    }
    assert all(flops % 2 == 0 for flops in counts.values())
    return sum(counts.get(operator, 0) for operator in operators) // 2


# ---- counts by hand


def test_linear_counts_by_hand() -> None:
    sites = find(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)), torch.zeros(3, 5, 8))
    assert list(sites) == ["0", "2"]
    first, last = sites.values()
    assert (first.kind, first.weight_shape, first.has_bias, first.params, first.dtype) == (
        "linear",
        (4, 8),
        True,
        36,
        "float32",
    )
    assert first.calls == (Call(rows=15, in_positions=15, in_size=(), out_size=()),)
    assert (first.macs, last.macs, last.params) == (15 * 32, 15 * 8, 8)
    assert (sites.total_params, sites.total_macs) == (44, 15 * 40)
    assert sites.not_counted == {"relu": "element-wise work"}
    assert sites.other_macs == {}
    assert sites.never_called == ()


def test_conv_counts_by_hand() -> None:
    conv = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 1), groups=2, padding_mode="reflect")
    site = find(conv, torch.zeros(2, 6, 9, 10))[""]
    assert site.calls == (Call(rows=2 * 5 * 10, in_positions=2 * 90, in_size=(9, 10), out_size=(5, 10)),)
    assert (site.out_features, site.in_features, site.kernel_size) == (8, 3 * 15, (3, 5))
    assert site.macs == 100 * 8 * 45
    assert site.params == 8 * 45 + 8
    assert (site.stride, site.padding, site.groups, site.padding_mode) == ((2, 1), (1, 2), 2, "reflect")
    assert site.dense_because is None
    assert site.layer(conv) is conv


def test_conv_with_same_padding_and_an_unbatched_image() -> None:
    site = find(nn.Conv2d(3, 4, 3, padding="same", dilation=2), torch.zeros(3, 7, 7))[""]
    assert site.padding == "same"
    assert site.calls == (Call(rows=49, in_positions=49, in_size=(7, 7), out_size=(7, 7)),)


CONVOLUTIONS: dict[str, Any] = {
    "1-D": (nn.Conv1d(4, 6, 5, 2, 3, dilation=2, groups=2), (2, 4, 21), (10,)),
    "1-D, same": (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9), (9,)),
    "1-D, one sample": (nn.Conv1d(4, 6, 3), (4, 10), (8,)),
    "3-D": (nn.Conv3d(2, 3, (1, 2, 3), (1, 2, 1), (0, 1, 2)), (2, 2, 4, 5, 6), (4, 3, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), (11, 11)),
    "transposed, all uneven": (
        nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), (1, 2), (1, 2), 2, dilation=(2, 1)),
        (2, 4, 5, 6),
        (12, 17),
    ),
    "transposed, 1-D": (nn.ConvTranspose1d(4, 6, 4, 2, 1, bias=False), (3, 4, 7), (14,)),
    "transposed, 3-D, one sample": (nn.ConvTranspose3d(2, 3, 2, (1, 2, 2)), (2, 3, 4, 5), (4, 8, 10)),
    "3-D, one sample": (nn.Conv3d(2, 4, 2, groups=2, bias=False), (2, 4, 4, 4), (3, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_other_dimensions_count_as_the_flop_counter_does(name: str) -> None:
    layer, shape, out_size = CONVOLUTIONS[name]
    dims = len(layer.kernel_size)
    site = find(layer, torch.zeros(shape))[""]
    samples = shape[0] if len(shape) == dims + 2 else 1
    (call,) = site.calls
    assert (call.in_size, call.out_size) == (shape[-dims:], out_size)
    assert call.in_positions == samples * math.prod(shape[-dims:])
    assert site.out_positions == samples * math.prod(out_size)
    assert site.kind == ("conv_transpose" if layer.transposed else "conv") + f"{dims}d"
    assert site.weight_shape == (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    assert site.params == sum(p.numel() for p in layer.parameters())
    assert (site.stride, site.padding, site.dilation) == (layer.stride, layer.padding, layer.dilation)
    assert site.macs == products(layer, torch.zeros(shape))
    assert site.positions((0,)) * shape[-dims] == samples * math.prod(shape[-dims:]) * out_size[0]


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 8, 3, groups=4), nn.Conv3d(4, 4, 3, groups=4)])
def test_depthwise_convolutions_of_other_dimensions_stay_dense(layer: Any) -> None:
    site = find(layer, torch.zeros(1, 4, *[7] * len(layer.kernel_size)))[""]
    assert str(site.dense_because).startswith("depthwise: each of its 4 groups has one input channel")


def test_a_transposed_convolution_that_is_told_its_output_size_stays_dense() -> None:
    class Sized(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.up, self.args, self.kwargs = nn.ConvTranspose2d(4, 6, 3, stride=2), args, kwargs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x, *self.args, **self.kwargs)

    for model in (Sized([12, 12]), Sized(output_size=[12, 12])):
        site = find(model, torch.zeros(1, 4, 5, 5))["up"]
        assert site.dense_because == "it is called with an output_size; give it an output_padding instead"
        assert (site.calls[0].out_size, site.macs) == ((12, 12), 25 * 24 * 9)
    assert find(Sized(), torch.zeros(1, 4, 5, 5))["up"].dense_because is None


@pytest.mark.parametrize("shape, rank", [((512, 512), 255), ((768, 3072), 614), ((4096, 11008), 2985), ((1, 9), 0)])
def test_break_even_is_the_last_rank_that_saves(shape: tuple[int, int], rank: int) -> None:
    site = Site(name="fc", kind="linear", weight_shape=shape)
    assert site.break_even == rank
    total, dense = sum(shape), shape[0] * shape[1]
    assert rank * total < dense <= (rank + 1) * total


def test_break_even_of_a_grouped_convolution_is_per_group() -> None:
    # per group a 16 x 72 matrix: r (16 + 72) < 1152
    assert Site(name="c", kind="conv2d", weight_shape=(32, 8, 3, 3), groups=2).break_even == 13


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_other_layers_are_counted_but_are_no_sites() -> None:
    parts = {
        "lstm": (
            nn.LSTM(3, 5, 2, bidirectional=True),
            torch.zeros(7, 2, 3),
            14 * (2 * 20 * (3 + 5) + 2 * 20 * (10 + 5)),
        ),
        "projected": (nn.LSTM(3, 5, proj_size=2), torch.zeros(7, 1, 3), 7 * (20 * 3 + 20 * 2 + 2 * 5)),
        "gru": (nn.GRU(3, 5), torch.zeros(7, 2, 3), 14 * 15 * 8),
        "cell": (nn.GRUCell(3, 5), torch.zeros(2, 3), 2 * 15 * 8),
    }
    for name, (layer, x, macs) in parts.items():
        sites = find(nn.Sequential(layer), x)
        assert (len(sites), dict(sites.other_macs), sites.total_macs) == (0, {"0": macs}, macs), name


def test_products_of_bare_parameters_are_counted_under_their_owner() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3))
            self.low = nn.Parameter(torch.randn(5, 5).half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x @ self.weight.t().contiguous()  # a copy: still the parameter's product
            x = F.linear(x, F.normalize(self.low.float(), dim=1))
            return x @ x.t()

    sites = find(Bare(), torch.randn(4, 3))
    assert sites.other_macs == {"weight": 4 * 15, "low": 4 * 25}
    assert sites.not_counted["mm"] == "a product of two activations, such as attention"
    assert sites.total_macs == 4 * 40


# ---- agreement with PyTorch's counter on real networks


# Architectures of torchvision with fewer and narrower blocks than the published ones.
NARROW: dict[str, Callable[[Any], nn.Module]] = {
    "swin": lambda models: models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=10),
    "vit": lambda models: models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10),
}


@functools.cache
def build(name: str) -> nn.Module:
    """A torchvision network with random weights; making one takes longer than counting it."""
    from rankwise.inputs.torchvision_shim import import_torchvision

    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    import torchvision.models

    models = torchvision.models
    return NARROW[name](models) if name in NARROW else getattr(models, name)(weights=None)


@pytest.mark.parametrize("name, size", [("resnet18", 64), ("mobilenet_v2", 64), ("swin", 64), ("vit", 32)])
def test_agrees_with_the_flop_counter(name: str, size: int) -> None:
    model, x = build(name), torch.randn(1, 3, size, size)
    sites = find(model, x)
    assert sites.total_macs == products(model, x)
    assert sites.total_params == sum(p.numel() for p in model.parameters())
    assert sites.never_called == ()


def test_depthwise_convolutions_stay_dense() -> None:
    sites = find(build("mobilenet_v2"), torch.randn(1, 3, 32, 32))
    dense = [site for site in sites.values() if site.dense_because]
    assert len(dense) == 17
    assert all(site.groups == site.weight_shape[0] and "depthwise" in str(site.dense_because) for site in dense)


def test_swin_attention_stays_dense_and_is_counted() -> None:
    sites = find(build("swin"), torch.randn(1, 3, 64, 64))
    site = sites["features.1.0.attn.qkv"]
    assert site.dense_because == "its weight is used directly by ShiftedWindowAttention (features.1.0.attn)"
    assert site.rows == 9 * 49  # 16 x 16 positions padded to nine windows of 7 x 7
    assert sites["features.1.0.mlp.0"].dense_because is None
    names = list(sites)
    assert (
        names.index("features.1.0.attn.qkv") < names.index("features.1.0.attn.proj") < names.index("features.1.0.mlp.0")
    )


# ---- attention


def test_multihead_attention_is_counted_and_dense() -> None:
    class Attend(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(16, 4, batch_first=True, **options)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.mha(x, y, y)[0]

    x = torch.randn(2, 5, 16)
    sites = find(Attend(), (x, x))
    assert sites["mha.out_proj"].dense_because == "its weight is used directly by MultiheadAttention (mha)"
    assert sites["mha.out_proj"].macs == 10 * 256
    assert sites.other_macs == {"mha": 10 * 3 * 256}
    assert sites.never_called == ()

    sites = find(Attend(kdim=6, vdim=6), (x, torch.randn(2, 7, 6)))
    assert sites.other_macs == {"mha": 10 * 256 + 2 * 14 * 96}


def test_the_fused_path_of_the_encoder_layer_keeps_its_layers_dense() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    x = torch.randn(2, 5, 16)
    sites = find(encoder, x)
    assert sites.total_macs == 2 * 10 * (4 * 256 + 2 * 512) == products(encoder, x)
    reason = "its weight is used directly by the fused path of TransformerEncoderLayer (layers.0)"
    assert sites["layers.0.linear1"].dense_because == reason
    assert torch.backends.mha.get_fastpath_enabled()
    # sequence-first layers never take that path, and a switch turns it off
    assert find(nn.TransformerEncoderLayer(16, 4, 32), x)["linear1"].dense_because is None
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert find(encoder, x)["layers.0.linear1"].dense_because is None
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# ---- names, order, ties


def test_order_is_that_of_the_first_call_and_calls_add_up() -> None:
    model = Chain("b a b", a=nn.Linear(4, 4), b=nn.Linear(4, 4), idle=nn.Conv2d(3, 4, 3), rnn=nn.GRU(2, 2))
    sites = find(model, torch.zeros(3, 4))
    assert list(sites) == ["b", "a"]
    assert (len(sites["b"].calls), sites["b"].rows, sites["b"].macs) == (2, 6, 96)
    assert sites.never_called == ("idle", "rnn")
    assert sites.total_params == 2 * 20 + 112 + 2 * 6 * (2 + 1)


def test_a_shared_module_is_one_site_with_aliases() -> None:
    layer = nn.Linear(4, 4)
    model = Chain("b a", a=layer, b=layer, block=nn.Sequential(layer))
    sites = find(model, torch.zeros(3, 4))
    assert list(sites) == ["a"]
    assert sites["a"].aliases == ("b", "block.0")
    assert (sites["a"].macs, sites.total_params) == (2 * 3 * 16, 20)
    assert [site.name for site in sites.select("block.*")] == ["a"]


def test_tied_linears_are_one_site_where_their_biases_allow() -> None:
    a, b, idle = (nn.Linear(4, 4, bias=False) for _ in range(3))
    b.weight = idle.weight = a.weight
    sites = find(Chain("b a", a=a, b=b, idle=idle), torch.zeros(3, 4))
    assert list(sites) == ["b"]
    assert set(sites["b"].aliases) == {"a", "idle"}
    assert (sites["b"].macs, sites.total_params, sites.never_called) == (96, 16, ())
    assert sites["b"].dense_because is None

    c, d = nn.Linear(4, 4), nn.Linear(4, 4)
    d.weight = c.weight
    sites = find(Chain("c d", c=c, d=d), torch.zeros(3, 4))
    assert sites["c"].dense_because == "its weight is tied to Linear (d), which has a different bias"
    d.bias = c.bias
    assert find(Chain("c d", c=c, d=d), torch.zeros(3, 4))["c"].dense_because is None


def test_tied_convolutions_of_another_stride_stay_dense() -> None:
    a, b = nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(3, 3, 3, stride=2, bias=False)
    b.weight = a.weight
    site = find(Chain("a b", a=a, b=b), torch.zeros(1, 3, 9, 9))["a"]
    assert site.dense_because == "its weight is tied to Conv2d (b), which has another geometry"
    assert site.rows == 49 + 9


def tied_to_an_embedding(order: str = "embedding head", shared: bool = False, **options: Any) -> Sites:
    parts: dict[str, Any] = {"embedding": nn.Embedding(10, 4, **options), "head": nn.Linear(4, 10)}
    parts["head"].weight = parts["embedding"].weight
    if shared:
        parts["other"] = nn.Module()
        parts["other"].weight = parts["embedding"].weight
    return find(Chain(order, **parts), torch.zeros(2, 3, dtype=torch.long))


def test_an_embedding_and_the_head_that_shares_its_weight_are_one_site() -> None:
    sites = tied_to_an_embedding()
    site = sites["embedding"]
    assert (list(sites), site.aliases, site.kind, site.dense_because) == (
        *(["embedding"], ("head",)),
        *("tied_embedding", None),
    )
    assert (site.weight_shape, site.has_bias, site.rows, site.lookups) == ((10, 4), True, 6, 6)
    assert (site.macs, sites.total_macs, site.params, sites.total_params) == (6 * 40, 6 * 40, 50, 50)
    assert (site.role, site.looks_up, site.multiplies) == (Role.TIED, True, True)
    assert (site.chain_bias("input"), site.chain_bias("weight")) == (True, True)
    assert Sites.from_dict(json.loads(json.dumps(sites.to_dict())))["embedding"] == site


def test_what_keeps_an_embedding_keeps_its_head_too() -> None:
    reasons = {
        "it is an embedding with max_norm": tied_to_an_embedding(max_norm=1.0),
        "its weight is tied to Module (other)": tied_to_an_embedding(shared=True),
        "its weight is tied to 'head', which the example input never calls": tied_to_an_embedding("embedding"),
    }
    for reason, sites in reasons.items():
        assert str(sites["embedding"].dense_because).startswith(reason)
        assert sites["embedding"].macs == sites.total_macs == 240 * (len(sites["embedding"].calls))


def test_a_head_that_reads_the_table_the_other_way_round_stays_dense() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    head = pytorch_utils.Conv1D(4, 10)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4), head
            self.head.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.one_hot(x, 10).float()) + self.embedding(x)

    sites = find(Net(), torch.zeros(2, 3, dtype=torch.long))
    assert next(iter(sites.values())).dense_because == "its weight is tied to Conv1D (head), which has another geometry"
    assert sites.total_macs == 6 * 40


def test_an_embedding_looks_rows_up_and_multiplies_nothing() -> None:
    sites = find(nn.Sequential(nn.Embedding(50, 8, padding_idx=3)), torch.zeros(2, 7, dtype=torch.long))
    site = sites["0"]
    assert (site.kind, site.weight_shape, site.has_bias, site.dense_because) == ("embedding", (8, 50), False, None)
    assert (site.rows, site.macs, site.params, sites.total_macs) == (14, 0, 400, 0)
    assert (site.chain_bias("input"), site.chain_bias("weight")) == (False, False)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"max_norm": 1.0, "padding_idx": 0}, "max_norm"),
        ({"sparse": True}, "sparse gradients"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq"),
    ],
)
def test_embeddings_with_options_that_are_about_whole_rows_stay_dense(options: dict[str, Any], name: str) -> None:
    site = find(nn.Sequential(nn.Embedding(50, 8, **options)), torch.zeros(2, 7, dtype=torch.long))["0"]
    assert f"it is an embedding with {name}" in str(site.dense_because)


def test_tied_embeddings_are_one_site_where_they_pad_alike() -> None:
    def tied(padding: int | None) -> Sites:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Embedding(9, 4, padding_idx=0), nn.Embedding(9, 4, padding_idx=padding)
                self.b.weight = self.a.weight

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.a(x) + self.b(x + 1)

        return find(Both(), torch.zeros(2, 3, dtype=torch.long))

    assert (tied(0)["a"].aliases, tied(0)["a"].dense_because, tied(0).total_params) == (("b",), None, 36)
    assert tied(1)["a"].dense_because == "its weight is tied to Embedding (b), which has another geometry"


def test_an_embedding_whose_weight_is_used_directly_stays_dense() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.embedding(x), self.embedding.weight)

    sites = find(Head(), torch.zeros(2, 3, dtype=torch.long))
    assert sites["embedding"].dense_because == "its weight is used directly by Head (the model itself)"
    assert (sites["embedding"].macs, sites.other_macs) == (0, {"embedding": 6 * 40})


def test_a_tied_bias_stays_dense() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.bias = a.bias
    sites = find(Chain("a b", a=a, b=b), torch.zeros(3, 4))
    assert sites["a"].dense_because == "its bias is tied to Linear (b)"


# ---- layers that are not what they seem


def test_a_subclass_with_its_own_forward_stays_dense_and_is_counted() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std()
            return self._conv_forward(x, weight, self.bias)

    class Renamed(nn.Linear):
        pass

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x @ self.down.t() @ self.up.t()

    patched = nn.Linear(4, 4)
    patched.forward = lambda x: F.linear(x, patched.weight) * 2  # type: ignore[method-assign]
    sites = find(Standardised(3, 4, 3), torch.zeros(2, 3, 5, 5))
    assert "Standardised has a forward of its own" in str(sites[""].dense_because)
    assert sites.total_macs == sites[""].macs == 18 * 4 * 27
    assert find(nn.Sequential(Renamed(4, 4)), torch.zeros(2, 4))["0"].dense_because is None
    sites = find(nn.Sequential(Adapted()), torch.zeros(3, 8))
    assert (sites["0"].macs, sites.other_macs) == (3 * 64, {"0": 2 * 3 * 16})
    assert "forward of its own" in str(find(nn.Sequential(patched), torch.zeros(2, 4))["0"].dense_because)


def test_a_layer_used_by_a_functional_stays_dense() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 6))
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.linear(x, self.inner[0].weight, self.inner[0].bias)
            return F.conv2d(x[None, None], self.conv.weight)

    sites = find(Functional(), torch.zeros(5, 4))
    assert sites["inner.0"].dense_because == "its weight is used directly by Functional (the model itself)"
    assert sites["inner.0"].macs == 5 * 24
    assert sites["conv"].calls == (Call(rows=12, in_positions=30, in_size=(5, 6), out_size=(3, 4)),)


def test_parametrised_weights_may_be_factorised() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    before = copy.deepcopy(model.state_dict())
    sites = find(model.train(), torch.randn(3, 8))
    assert [site.dense_because for site in sites.values()] == [None, None]
    assert sites["0"].weight_shape == (4, 8)
    assert (sites["0"].params, sites["1"].params) == (4 * 8 + 4 + 4, 20)  # one magnitude per output besides
    assert sites.total_params == sum(p.numel() for p in model.parameters()) == 60
    assert sites.total_macs == 3 * 48
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_transformers_conv1d_is_a_transposed_linear() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    site = find(nn.Sequential(Conv1D(6, 4)), torch.zeros(2, 3, 4))["0"]
    assert (site.kind, site.weight_shape, site.macs, site.params) == ("conv1d_hf", (6, 4), 6 * 24, 30)
    assert site.dense_because is None


def test_gpt2_from_a_mapping_with_a_tied_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=20)
    sites = find(transformers.GPT2LMHeadModel(config), {"input_ids": torch.zeros(2, 7, dtype=torch.long)})
    assert (sites["transformer.wte"].aliases, sites["transformer.wte"].macs) == (("lm_head",), 14 * 16 * 50)
    assert sites.total_macs == 14 * (2 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 16 * 50)
    assert sum(site.dense_because is None for site in sites.values()) == 8 + 1 + 1  # the embedding of the positions


# ---- select and fingerprint


def test_select_by_glob_and_regular_expression() -> None:
    model = Chain("enc1 enc2 head", enc1=nn.Linear(4, 4), enc2=nn.Linear(4, 4), head=nn.Linear(4, 2))
    sites = find(model, torch.zeros(1, 4))

    def names(patterns: Any) -> list[str]:
        return [site.name for site in sites.select(patterns)]

    assert names(["head", "enc*"]) == ["enc1", "enc2", "head"]
    assert names("re:enc[2-9]") == ["enc2"]
    assert names([]) == []
    with pytest.raises(ValueError, match=r"'encoder1' matches no site; near names are: enc1"):
        names(["head", "encoder1"])
    with pytest.raises(ValueError, match=r"'re:enc' matches no site"):  # full match
        names("re:enc")
    with pytest.raises(ValueError, match="not a valid regular expression"):
        names("re:(")


def test_select_says_that_a_layer_is_never_called() -> None:
    sites = find(Chain("a", a=nn.Linear(4, 4), spare=nn.Linear(4, 4)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="never calls: spare"):
        sites.select("spa*")


def test_sites_is_a_mapping_with_a_short_repr() -> None:
    sites = find(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4))
    assert isinstance(sites, Sites)
    assert repr(sites) == "Sites(1 of 1 to factorise, 20 params, 16 MACs)"


def test_sites_survive_json() -> None:
    sites = find(nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 2, (1, 3))), torch.zeros(1, 3, 5, 5))
    again = Sites.from_dict(json.loads(json.dumps(sites.to_dict())))
    assert dict(again) == dict(sites)
    assert again.to_dict() == sites.to_dict()
    assert again.never_called == ()


def test_fingerprint_is_of_the_structure() -> None:
    def make(width: int = 4, act: nn.Module | None = None) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), act or nn.ReLU())

    assert fingerprint(make()) == fingerprint(make()) == fingerprint(nn.DataParallel(make()))
    assert find(make(), torch.zeros(1, 4)).fingerprint == fingerprint(make())
    assert len({fingerprint(m) for m in (make(), make(5), make(4, nn.GELU()))}) == 3


# ---- wrappers and refusals


def test_wrappers_are_looked_through() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    assert unwrap(compiled) is model  # type: ignore[arg-type]
    assert list(find(compiled, torch.zeros(2, 4))) == ["0"]  # type: ignore[arg-type]
    inplace = nn.Sequential(nn.Linear(4, 4))
    inplace.compile(backend="eager")
    assert find(inplace, torch.zeros(2, 4))["0"].rows == 2
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got int"):
        unwrap(3)  # type: ignore[arg-type]


def test_distributed_data_parallel_is_looked_through(tmp_path: Any) -> None:
    dist = torch.distributed
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("PyTorch was built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Linear(4, 4)
        assert unwrap(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        dist.destroy_process_group()


def old_spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)))


def old_weight() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))


def lora() -> nn.Module:
    from rankwise.inputs.torchvision_shim import import_torchvision

    import_torchvision()  # peft imports transformers, which imports it where it is installed
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(target_modules=["0"]))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "build, message",
    [
        (old_weight, r"'0' carries the old torch.nn.utils.weight_norm.*remove_weight_norm"),
        (old_spectral, r"'0' carries the old torch.nn.utils.spectral_norm.*remove_spectral_norm"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "'0.weight' has no shape yet; run one forward pass first"),
        (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), "'0.weight' is on the meta device"),
        (lambda: torch.jit.script(nn.Linear(4, 4)), "TorchScript"),
        (lora, "PEFT.*merge_and_unload"),
        (lambda: nn.Sequential(torch.compile(nn.Linear(4, 4))), "'0' is compiled"),
        (lambda: torch.ao.nn.quantized.Linear(4, 4), "quantised"),
    ],
)
def test_refusals_name_the_part_and_the_fix(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(build(), torch.zeros(1, 4))


def test_a_graph_module_is_fine() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert list(find(traced, torch.zeros(1, 4))) == ["0"]


def test_half_precision_models_take_float_examples() -> None:
    site = find(nn.Sequential(nn.Linear(4, 4)).bfloat16(), torch.zeros(2, 4))["0"]
    assert (site.dtype, site.rows) == ("bfloat16", 2)


def test_a_rejected_example_is_a_value_error_and_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    with pytest.raises(ValueError, match=r"Sequential rejects the example batch \(2, 5\)"):
        find(model, torch.zeros(2, 5))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class OfComplexNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd = nn.Linear(32, 64), nn.Linear(32, 32, dtype=torch.complex64)
        self.last = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.odd(torch.view_as_complex(self.first(x).view(-1, 32, 2)))
        return self.last(y.abs())


class OfIntegers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 16)
        self.odd.weight = nn.Parameter(torch.randint(-3, 3, (32, 32)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.odd((self.first(x) * 10).long())
        return self.last(y.float() / 100)


@pytest.mark.parametrize(
    "build, reason", [(OfComplexNumbers, "complex64, and factors are real numbers"), (OfIntegers, "int64, integers")]
)
@pytest.mark.parametrize("method", ["one-shot", "sequential"])
def test_weights_that_are_no_real_numbers_stay_dense(
    build: Callable[[], nn.Module], reason: str, method: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, data = build().eval(), [torch.randn(16, 32) for _ in range(4)]
    assert reason in str(rw.find(model, data[0][:1])["odd"].dense_because)
    small, report = rw.compress(model, data, keep={"macs": 0.9}, method=method)
    assert report.plan["odd"].format == "dense"
    rw.save(small, tmp_path / "out", plan=report.plan)
    assert torch.equal(rw.load(build().eval(), tmp_path / "out")(data[0]), small(data[0]))


class Hosted(nn.Module):
    """Calls its middle layer in the way of a function."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 8)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.how(self.middle, torch.relu(self.first(x)))))


def nested(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)).values()


@pytest.mark.parametrize(
    "how, told",
    [
        (lambda layer, x: torch.vmap(layer)(x), "tensors inside of torch.vmap"),
        (lambda layer, x: torch.vmap(torch.vmap(layer))(x[None])[0], "tensors inside of torch.vmap"),
        (nested, "nested tensors"),
    ],
)
def test_tensors_without_rows_of_their_own_leave_a_layer_dense(how: Callable[..., Tensor], told: str) -> None:
    torch.manual_seed(0)
    model, data = Hosted(how).eval(), [torch.randn(12, 16) for _ in range(4)]
    sites = find(model, data[0])
    assert sites["middle"].dense_because == f"it is called with {told}"
    assert sites.total_macs == 12 * (16 * 24 + 24 * 24 + 24 * 8)
    small, report = rw.compress(model, data, keep={"macs": 0.8}, example=data[0])
    assert report.compressed.macs == report.plan.planned["macs"] <= 0.8 * report.dense.macs
    assert small(data[0]).shape == (12, 8)


def test_a_forward_in_inference_mode_is_counted_and_factorised() -> None:
    class Inferring(Hosted):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model, data = Inferring(lambda layer, x: layer(x)).eval(), [torch.randn(12, 16) for _ in range(4)]
    assert find(model, data[0][:1]).total_macs == 16 * 24 + 24 * 24 + 24 * 8
    _, report = rw.compress(model, data, keep={"macs": 0.7})
    assert report.compressed.macs == report.plan.planned["macs"] <= 0.7 * report.dense.macs


def test_a_weight_that_is_made_of_a_layer_and_more_is_the_layers() -> None:
    class Adapted(Hosted):
        def __init__(self) -> None:
            super().__init__(nn.Module.forward)
            self.up, self.down = nn.Parameter(torch.randn(24, 2)), nn.Parameter(torch.randn(2, 24))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.middle.weight + self.up @ self.down
            return self.last(F.linear(self.first(x), weight, self.middle.bias))

    sites = find(Adapted().eval(), torch.randn(1, 16))
    assert str(sites["middle"].dense_because).startswith("its weight is used directly by")
    assert sites.total_macs == 16 * 24 + 24 * 24 + 24 * 8 + 24 * 2 * 24  # the product of the adapter with them

"""A chain in the place of a layer: what hosts and tracers may do with it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import rankwise as rw
from rankwise.formats import get_format
from rankwise.layers.lazy_weight import LazyWeight
from rankwise.layers.low_rank import watching_weights

LAYERS = {
    "linear": (lambda: nn.Linear(12, 18), (2, 5, 12)),
    "conv1d": (lambda: nn.Conv1d(12, 18, 3, padding=1), (2, 12, 7)),
    "conv2d": (lambda: nn.Conv2d(12, 18, 3, stride=2, padding=1), (2, 12, 7, 7)),
    "grouped": (lambda: nn.Conv2d(12, 18, 3, groups=2), (2, 12, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(12, 18, 3, stride=2), (2, 12, 5, 5)),
}


def chain_of(name: str, layer: str) -> tuple[nn.Module, rw.LowRank, Tensor]:
    """The dense layer, its chain with random factors, and an input; skips where the format does not apply."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    dense, x, format = make(), torch.randn(*shape), get_format(name)
    site = rw.find(nn.Sequential(dense), x)["0"]
    if format.refuses(site):
        pytest.skip(str(format.refuses(site)))
    chain = format.build(dense, tuple(max(1, limit // 2) for limit in format.limits(site)), True)
    for parameter in chain.parameters():
        nn.init.normal_(parameter, std=0.1)
    return dense, chain, x


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", rw.FORMATS)
def test_every_chain_is_traced_and_scripted(name: str, layer: str) -> None:
    _, chain, x = chain_of(name, layer)
    network = nn.Sequential(chain, nn.ReLU())
    for made in (torch.fx.symbolic_trace(network), torch.jit.script(network)):
        torch.testing.assert_close(made(x), network(x))
        torch.testing.assert_close(made(x[0]), network(x[0]))  # tracing has not fixed whether there is a batch
        assert made(x[0]).shape == network(x)[0].shape


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["svd", "spatial_svd", "tucker2", "pivoted_svd", "cp"])
def test_a_chain_has_the_attributes_and_the_shape_of_its_layer(name: str, layer: str) -> None:
    dense, chain, _ = chain_of(name, layer)
    public = {key: value for key, value in vars(dense).items() if not key.startswith("_")}
    assert {key: getattr(chain, key) for key in public} == public
    assert chain.weight.shape == chain.weight_shape == dense.weight.shape
    torch.testing.assert_close(chain.weight + 0, rw.LowRank.weight.fget(chain))


def test_attributes_that_the_user_has_set_go_on() -> None:
    dense = nn.Linear(8, 8)
    dense.lr_scale = 0.1
    assert get_format("svd").build(dense, (2,), True).lr_scale == 0.1


def test_reading_type_place_and_shape_computes_nothing() -> None:
    _, chain, _ = chain_of("svd", "conv2d")
    made: list[rw.LowRank] = []
    with watching_weights(made.append):
        weight = chain.weight
        assert isinstance(weight, Tensor)
        assert (weight.dtype, weight.device, weight.ndim) == (torch.float32, torch.device("cpu"), 4)
        assert (weight.shape, weight.size(0), len(weight), weight.numel()) == ((18, 12, 3, 3), 18, 18, 18 * 12 * 9)
        assert weight.requires_grad
        assert weight.is_floating_point()
        assert torch.is_floating_point(weight)
        assert not made
        weight.sum()
        assert made == [chain]


def test_gradients_reach_the_factors_through_the_weight() -> None:
    _, chain, _ = chain_of("svd", "linear")
    (2 * chain.weight).sum().backward()
    assert all(layer.weight.grad is not None for layer in chain)


@pytest.mark.parametrize(
    "use", [Tensor.clone, Tensor.detach, Tensor.float, copy.deepcopy, lambda w: w[0], lambda w: w.data]
)
def test_values_are_plain_tensors(use) -> None:
    _, chain, _ = chain_of("svd", "linear")
    with torch.no_grad():
        assert type(use(chain.weight)) is Tensor


def test_a_weight_is_not_written_to() -> None:
    _, chain, _ = chain_of("svd", "linear")
    for write in (lambda w: w.zero_(), lambda w: w.__setitem__(0, 1.0), lambda w: setattr(w, "requires_grad", False)):
        with pytest.raises(ValueError, match="computed from its factors and cannot be written to"), torch.no_grad():
            write(chain.weight)


def test_a_lazy_weight_among_arguments_is_computed() -> None:
    lazy = LazyWeight(lambda: torch.eye(2), torch.zeros(()), (2, 2), False)
    assert torch.equal(torch.stack([lazy, torch.zeros(2, 2)])[0], torch.eye(2))
    assert torch.equal(torch.ones(2) @ lazy, torch.ones(2))


def test_a_chain_survives_pickle_and_deepcopy() -> None:
    _, chain, x = chain_of("tucker2", "conv2d")
    for again in (pickle.loads(pickle.dumps(chain)), copy.deepcopy(chain)):
        torch.testing.assert_close(again(x), chain(x))


def test_a_norm_after_a_chain_is_fused_by_torch() -> None:
    _, chain, x = chain_of("tucker2", "conv2d")
    network = nn.Sequential(chain, nn.BatchNorm2d(18)).eval()
    network[1].running_mean.normal_()
    fused = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), network(x), rtol=1e-4, atol=1e-5)

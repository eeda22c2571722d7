"""Trees of modes as layers: the definition of the form, its bound, plans of earlier versions, and what is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankwise import Site, find
from rankwise.formats import FORMATS, Factors, get_format
from rankwise.formats.hierarchical import HierarchicalTucker
from rankwise.formats.multilinear import Multilinear
from rankwise.formats.shape import Shape
from rankwise.formats.weights import site_weight, weight_metrics
from rankwise.linalg import multilinear
from rankwise.linalg.metric import Identity

pytestmark = pytest.mark.usefixtures("one_thread")


def site_of(layer: nn.Module, *shape: int) -> Site:
    return find(nn.Sequential(layer), torch.zeros(shape))["0"]


def conv(outputs: int = 6, channels: int = 8, kernel: tuple[int, int] = (3, 4)) -> Site:
    return Site(name="conv", kind="conv2d", weight_shape=(outputs, channels, *kernel))


def linear(outputs: int = 24, inputs: int = 36) -> Site:
    return Site(name="fc", kind="linear", weight_shape=(outputs, inputs))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(format: str, site: Site, ranks: tuple[int, ...]) -> Factors:
    return get_format(format).fit(site, random(*site.weight_shape), weight_metrics(site), ranks)


def named(factors: Factors) -> dict[str, np.ndarray]:
    """The factors of one group by their letters, put in alphabetical order."""
    found = {}
    for name, tensor in factors.tensors.items():
        letters = name.partition("_G")[2]
        found["".join(sorted(letters))] = torch.einsum(f"{letters}->{''.join(sorted(letters))}", tensor[0]).numpy()
    return found


def test_outputs_meet_rows_and_channels_meet_columns() -> None:
    """`U_th = (U_t kron U_h) B_th`, `U_cw = (U_c kron U_w) B_cw`, `W = U_th U_cw^T`."""
    factors = fitted("ht", conv(), (4, 5, 2, 3, 6))
    part = named(factors)
    assert {letters: tensor.shape for letters, tensor in part.items()} == {
        **{"at": (4, 6), "bc": (5, 8), "dh": (2, 3), "ew": (3, 4)},
        **{"adf": (4, 2, 6), "bef": (5, 3, 6)},
    }
    U_th = np.kron(part["at"].T, part["dh"].T) @ part["adf"].reshape(8, 6)
    U_cw = np.kron(part["bc"].T, part["ew"].T) @ part["bef"].reshape(15, 6)
    W = (U_th @ U_cw.T).reshape(6, 3, 8, 4).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_a_matrix_of_four_modes() -> None:
    """Each entry is the sum over the bonds, written out."""
    factors = fitted("ht:outputs=2x3x2x2,inputs=3x2x3x2", linear(), (2, 3, 2, 2, 4))
    part = named(factors)
    W = np.zeros((2, 3, 2, 2, 3, 2, 3, 2))
    for t, u, v, m, i, j, k, low in np.ndindex(W.shape):
        left = np.einsum("a,b,abf->f", part["ait"][:, i, t], part["bju"][:, j, u], part["abf"])
        right = np.einsum("e,d,def->f", part["ekv"][:, k, v], part["dlm"][:, low, m], part["def"])
        W[t, u, v, m, i, j, k, low] = left @ right
    np.testing.assert_allclose(factors.dense().numpy(), W.reshape(24, 36), atol=1e-12)


@pytest.mark.parametrize(
    "format, site, ranks",
    [
        ("ht", conv(), (3, 4, 2, 2, 5)),
        ("ht:tree=tc/hw", conv(), (3, 4, 2, 2, 3)),
        ("ht:tree=tw/hc", conv(), (3, 4, 2, 2, 5)),
        ("ht:tree=tc/q", conv(), (3, 4, 4)),
        ("ht", linear(), (4, 4, 4)),
        pytest.param("ht:outputs=2x3x2x2,inputs=3x2x3x2", linear(), (3, 3, 3, 2, 5), marks=pytest.mark.slow),
    ],
)
def test_start_and_fit_are_within_the_bound_of_the_best(format: str, site: Site, ranks: tuple[int, ...]) -> None:
    """The best that long fits from random starts find is no better than the best there is."""
    form, W = get_format(format), random(*site.weight_shape)
    assert isinstance(form, Multilinear)
    network, metric = form.network(Shape.of_site(site), ranks), Identity(site.in_features)
    X = W.reshape(network.shape(network.equation.kernel))
    (start,) = form.starts(network, X)
    bound = (len(ranks) + 3) / 2 * 2 - 3  # 2 d - 3 edges have a rank each
    assert bound == len(ranks)
    missed = float((network.kernel([part[None] for part in start]).reshape(W.shape) - W).square().sum())
    best = math.inf
    for seed in range(3):
        others = [random(*network.shape(letters), seed=10 * seed + n) for n, letters in enumerate(network.factors)]
        found = multilinear.fit(W.flatten(1), metric, network.equation, others, multilinear.Effort(200, 1e-6, 8))
        best = min(best, found.error)
    assert missed <= bound * best
    fit = form.fit(site, W, weight_metrics(site), ranks).error * float(W.square().sum())
    assert fit <= min(missed, 1.05 * best)


@pytest.mark.slow
def test_more_is_never_worse() -> None:
    site, least = conv(), (1, 1, 1, 1, 1)
    limits = FORMATS["ht"].limits(site)
    assert limits == (6, 8, 3, 4, 18)
    for step in range(3):
        ranks = tuple(min(limit, 1 + 2 * step) for limit in limits)
        error = fitted("ht", site, ranks).error
        for axis in range(len(limits)):
            more = (*ranks[:axis], min(ranks[axis] + 1, limits[axis]), *ranks[axis + 1 :])
            assert fitted("ht", site, more).error <= error * (1 + 1e-3)
    assert fitted("ht", site, limits).error < 1e-12
    assert fitted("ht", site, least).error > 0.5


def test_three_ranks_of_a_kernel_are_those_of_earlier_versions() -> None:
    """`W[t, c, q] = sum A[t, a] M[a, b, e] B[b, c] E[e, q]`, with the layers of then in their order."""
    format, layer = FORMATS["ht"], nn.Conv2d(6, 4, 3, 2, 1).double()
    site = site_of(layer.float(), 1, 6, 8, 8)
    chain = format.build(layer.double(), (3, 2, 4), bias=True)
    B, M, E, A = (module.weight for module in chain if hasattr(module, "weight"))
    assert [tuple(part.shape) for part in (B, M, E, A)] == [(2, 6, 1, 1), (12, 2, 1, 1), (1, 4, 3, 3), (4, 3, 1, 1)]
    W = torch.einsum("ta,aeb,bc,ehw->tchw", A[:, :, 0, 0], M.view(3, 4, 2), B[:, :, 0, 0], E[0])
    torch.testing.assert_close(chain.weight, W)
    x = random(2, 6, 8, 8)
    dense = torch.nn.functional.conv2d(x, W, chain.bias, 2, 1)
    torch.testing.assert_close(chain(x), dense)
    other = get_format("ht:tree=tc/q")
    assert format.cost(site, (3, 2, 4), True) == other.cost(site, (3, 2, 4), True)
    weight, metrics = site_weight(nn.Sequential(layer), site), weight_metrics(site)
    old, new = (each.fit(site, weight, metrics, (3, 2, 4)) for each in (format, other))
    assert (old.format, old.ranks, new.format) == ("ht", (3, 2, 4), "ht:tree=tc/q")
    assert torch.equal(old.dense(), new.dense())
    with pytest.raises(ValueError, match=r"between 1 and \(4, 6, 9\)"):
        format.check(site, (3, 2, 10))


def test_directions_of_one_tap_have_no_leaf() -> None:
    for kernel, count in (((1, 3), 3), ((3, 1), 3), ((3, 3), 5)):
        assert len(FORMATS["ht"].limits(conv(kernel=kernel))) == count
    layer = nn.Conv2d(8, 6, (1, 3), (2, 1), (1, 0), bias=False)
    site = site_of(layer, 1, 8, 6, 7)
    chain = FORMATS["ht"].build(layer, FORMATS["ht"].limits(site), bias=False)
    assert chain(torch.zeros(1, 8, 6, 7)).shape == layer(torch.zeros(1, 8, 6, 7)).shape


@pytest.mark.parametrize(
    "format, site, reason",
    [
        ("ht:outputs=2x3x1", conv(), "splits matrices, and here is a kernel"),
        ("ht:outputs=2x3x2", linear(), "reads 12 outputs as 2 x 3 x 2, and here are 24"),
        ("ht:outputs=4x6,inputs=6x6", linear(), "into three modes at least"),
        ("ht:outputs=2x3x4,inputs=2x3x3x2", linear(), "needs as many of both"),
        ("ht:tree=th/cw", linear(), "a tree of other modes than 1, 2, 3"),
        ("ht:tree=12/34", linear(), "a tree of other modes than 1, 2, 3"),
        ("ht:tree=12/3", conv(), "a tree of other modes than t, c, h, w"),
        ("ht:tree=tc/w", conv(), "a tree of other modes than t, c, h, w"),
        ("ht:tree=tc/qw", conv(), "a tree of other modes than t, c, q"),
        ("ht", linear(1, 36), "needs more inputs and outputs to split"),
    ],
)
def test_what_a_tree_cannot_have(format: str, site: Site, reason: str) -> None:
    found = get_format(format).refuses(site)
    assert found is not None
    assert re.match(rf"{re.escape(format)} .*{re.escape(reason)}.*; use svd$", found), found


def test_every_tree_of_four_modes_is_exact() -> None:
    site = conv(4, 3, (2, 3))
    trees = ("th/cw", "tw/ch", "tc/hw", "thw/c", "t/chw", "wht/c", "ct/wh")
    for tree in trees:
        format = HierarchicalTucker(tree=tree)
        assert fitted(format.name, site, format.limits(site)).error < 1e-12

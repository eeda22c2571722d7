"""Every format in a metric with two sides: the identity changes nothing, and what cannot keep its form says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise import FORMATS, Site, find
from rankwise.formats import Format
from rankwise.formats.both_sides import curve, fit, refuses
from rankwise.formats.weights import site_weight
from rankwise.linalg.metric import Dense
from rankwise.linalg.two_sided import TwoSided

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = {
    "linear": (nn.Linear(12, 8), torch.zeros(1, 12)),
    "groups": (nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.zeros(1, 4, 5, 5)),
}
SPLIT = {"linear": {"tt", "tr", "stt", "str", "ht", "kronecker", "slr", "slr3"}, "groups": {"stt", "str", "kronecker"}}
# All on the linear layer; on the convolution closed forms, one that has none, and one that is refused.
CONVOLUTION = ("svd", "pivoted_svd", "spatial_svd", "tucker2", "cp3", "kronecker")
CELLS = [
    (format, name) for name in LAYERS for format in FORMATS.values() if name == "linear" or format.name in CONVOLUTION
]


def layer(name: str) -> tuple[Site, Tensor]:
    module, x = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        module.weight.normal_(generator=generator)
    site = find(nn.Sequential(module), x)["0"]
    return site, site_weight(nn.Sequential(module), site)


def moments(count: int, size: int, seed: int) -> Tensor:
    x = torch.randn(count, 3 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.mT @ x / x.shape[1]


def both(site: Site, outputs: Tensor | None = None) -> TwoSided:
    T = site.out_features // site.groups
    inputs = [Dense(sigma) for sigma in moments(site.groups, site.in_features, 1)]
    return TwoSided.of(inputs, moments(site.groups, T, 2) if outputs is None else outputs)


def usable(format: Format, name: str) -> bool:
    return format.refuses(layer(name)[0]) is None and format.name not in SPLIT[name]


@pytest.mark.parametrize("format, name", [pytest.param(*cell, id=f"{cell[0].name}-{cell[1]}") for cell in CELLS])
def test_with_an_identity_at_the_outputs_it_is_the_input_metric(format: Format, name: str) -> None:
    site, W = layer(name)
    if not usable(format, name):
        reason = refuses(format, site, "fisher")
        assert reason is not None
        assert format.name in reason
        assert "use svd" in reason or "use tucker" in reason or "use cp" in reason
        return
    ranks = tuple(max(1, limit // 2) for limit in format.limits(site))
    T = site.out_features // site.groups
    eye = 5.0 * torch.eye(T, dtype=torch.float64).expand(site.groups, T, T)
    one, two = TwoSided(inputs=both(site).inputs), both(site, eye)
    wanted, found = fit(format, site, W, one, ranks), fit(format, site, W, two, ranks)
    torch.testing.assert_close(found.dense(), wanted.dense(), rtol=1e-6, atol=1e-7)
    assert found.error == pytest.approx(wanted.error, rel=1e-6)
    if format.name not in ("svd", "pivoted_svd", "spatial_svd", "tucker2", "btd"):  # these take time, alike
        return
    ours, theirs = curve(format, site, W, two, 4), curve(format, site, W, one, 4)
    assert [ranks for ranks, _ in ours] == [ranks for ranks, _ in theirs]
    assert [error for _, error in ours] == pytest.approx([error for _, error in theirs], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_svd_has_the_least_error_of_both_sides(name: str) -> None:
    """In the metric of both sides it beats the fit that sees the inputs alone, and the other way round."""
    site, W = layer(name)
    two, ranks = both(site), (2,)
    one = TwoSided(inputs=two.inputs)
    found, other = fit(FORMATS["svd"], site, W, two, ranks), fit(FORMATS["svd"], site, W, one, ranks)
    assert two.energy(W - found.dense()) < 0.99 * two.energy(W - other.dense())
    assert one.energy(W - found.dense()) > 1.01 * one.energy(W - other.dense())
    assert found.error == pytest.approx(two.energy(W - found.dense()) / two.energy(W), rel=1e-9)


def test_auto_skips_formats_that_split_the_outputs_and_a_name_alone_is_refused() -> None:
    model = nn.Sequential(nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36))
    stats = rw.collect(model, [torch.randn(64, 36)], gradients=True)
    curves = rw.profile(model, stats, formats="auto", metric="fisher")
    formats = {option.format for options in curves.values() for option in options}
    assert {"dense", "svd", "pivoted_svd"} <= formats
    assert not formats & SPLIT["linear"]
    with pytest.raises(ValueError, match=r"formats: kronecker has no factor that alone holds the outputs .* use svd"):
        rw.profile(model, stats, formats=["svd", "kronecker"], metric="fisher")
    with pytest.raises(ValueError, match="site '0' cannot be pinned to tt: tt has no factor that alone holds"):
        rw.choose(model, stats, keep={"params": 0.9}, metric="fisher", pin={"0": "tt:2,2"})

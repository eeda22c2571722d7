"""Targets that repair the residual stream: the scale on the way, what links, and that it helps."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import Residual, batches_of, make, outputs, plan_of
from torch import Tensor, fx, nn

import rankwise as rw
from rankwise.factorisation import graph, residual
from rankwise.factorisation.residual import corrected, schedule
from rankwise.factorisation.watch import linked_sites
from rankwise.running.pristine import pristine


def links_of(model: nn.Module, sites: set[str], example: Tensor) -> dict[str, residual.Link]:
    with pristine(model):
        linked = linked_sites(model, example, [name for name in rw.find(model, example) if name in sites])
        found = graph.trace(model, example, sites, linked)
    assert isinstance(found, fx.Graph), found
    nodes, links = schedule(found, model, linked)
    assert set(links) == linked
    assert sorted(map(str, nodes)) == sorted(map(str, found.nodes))
    place = {node: i for i, node in enumerate(nodes)}
    assert all(place[argument] < place[node] for node in nodes for argument in node.all_input_nodes)
    for name, link in links.items():
        assert place[link.other] < next(i for i, node in enumerate(nodes) if node.target == name)
    return links


class Block(nn.Module):
    """One addition, written by `combine`."""

    def __init__(self, combine: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 12), nn.ReLU())
        self.main = nn.Linear(12, 12)
        self.side = nn.Linear(12, 12)
        self.norm = nn.BatchNorm1d(12)
        self.few = nn.BatchNorm1d(7)
        self.several = nn.Sequential(nn.BatchNorm1d(12), nn.Dropout(0.3))
        self.drop = nn.Dropout(0.3)
        self.add = Addition()
        self.keeps, self.halves, self.rectifies = Keeps(), DropPath(), nn.ReLU(inplace=True)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self, self.stem(x))


class Keeps(nn.Module):
    """Does nothing in evaluation, under a name that says nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class DropPath(nn.Module):
    """Has the name of a module that does nothing in evaluation, and does something."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Addition(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def with_norm(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = model.main(x)
    return y, model.norm(y)


def block(kind: str) -> nn.Module:
    return make(lambda: Block({**LINKED, **UNLINKED, **UNREPAIRED}[kind]))


LINKED: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "plus": lambda m, x: m.main(x) + x,
    "the other way round": lambda m, x: x + m.main(x),
    "in place": lambda m, x: m.main(x).add_(x),
    "torch.add": lambda m, x: torch.add(m.main(x), x),
    "norm": lambda m, x: x + m.norm(m.main(x)),
    "norm and dropout": lambda m, x: x + m.drop(m.norm(m.main(x))),
    "a module that does nothing": lambda m, x: x + m.keeps(m.main(x)),
    "computed later": lambda m, x: m.main(x) + torch.tanh(x),
    "into the other": lambda m, x: (x * 1).add_(m.main(x)),
    "in place, and read again": lambda m, x: (lambda y: (y.add_(x), y.abs())[1])(m.main(x)),
    "another site in between": lambda m, x: (lambda y, z: (y + x) * z)(m.main(x), m.side(x)),
    "the other changed before": lambda m, x: (lambda h: m.main(h.mul_(2)) + h)(x * 1),
}
UNLINKED: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "a module that is called as one that does nothing": lambda m, x: x + m.halves(m.main(x)),
    "an activation in place": lambda m, x: x + m.rectifies(m.main(x)),
    "an activation between": lambda m, x: x + torch.relu(m.main(x)),
    "used twice": lambda m, x: (lambda y: x + y + y.abs())(m.main(x)),
    "a number": lambda m, x: m.main(x) + 1.0,
    "itself": lambda m, x: (lambda y: y + y)(m.main(x)),
    "itself by torch.add": lambda m, x: (lambda y: torch.add(y, y) + x)(m.main(x)),
    "itself in place": lambda m, x: (lambda y: y.add_(y) + x)(m.main(x)),
    "an earlier value": lambda m, x: (lambda y, z: (y + x) * torch.sigmoid(z))(*with_norm(m, x)),
    "an earlier value, the other way round": lambda m, x: (lambda y, z: (x + y) * torch.sigmoid(z))(*with_norm(m, x)),
    "two norms": lambda m, x: (lambda y, z: (m.norm(y) + x) * z)(*with_norm(m, x)),
    "pieces": lambda m, x: (lambda y: y.chunk(2, -1)[0].sum() * (y + x))(m.main(x)),
    "a list": lambda m, x: (lambda y: torch.cat([y, y], -1).sum() * (y + x))(m.main(x)),
    "a factor": lambda m, x: torch.add(x, m.main(x), alpha=0.5),
    "a factor of the other": lambda m, x: torch.add(m.main(x), x, alpha=-1),
    "a factor, as a method": lambda m, x: m.main(x).add(x, alpha=-1),
    "a factor, in place": lambda m, x: m.main(x).add_(x, alpha=-1),
    "a keyword": lambda m, x: torch.add(m.main(x), other=x),
    "an output": lambda m, x: torch.add(m.main(x), x, out=x * 1),
    "minus": lambda m, x: m.main(x) - x,
    "minus, the other way round": lambda m, x: x - m.main(x),
    "minus, as a function": lambda m, x: torch.sub(m.main(x), x),
    "minus, in place": lambda m, x: m.main(x).sub_(x),
    "a norm by keyword": lambda m, x: x + m.norm(input=m.main(x)),
    "a module of several": lambda m, x: x + m.several(m.main(x)),
    "a module that adds": lambda m, x: m.add(m.main(x), x),
    "no addition": lambda m, x: m.main(x) * x,
    "leaves the network as well": lambda m, x: (lambda y: (y + x, y))(m.main(x)),
    "its size is read": lambda m, x: (lambda y: y + x.view(y.size(0), 12))(m.main(x)),
    "its shape is read": lambda m, x: (lambda y: (y + x).view(y.shape))(m.main(x)),
    "the size of an unfitted site": lambda m, x: (lambda y, z: y + x.view(z.size(0), 12))(m.main(x), m.side(x)),
    "the other changed after": lambda m, x: (lambda h: (lambda y, _: y + h)(m.main(h), h.mul_(2)))(x * 1),
    "the other changed after, through a view": lambda m, x: (
        lambda h: (lambda y, _: y + h)(m.main(h), h.view(-1).mul_(2))
    )(x * 1),
    "the other depends on the site": lambda m, x: (lambda y: m.norm(y) + y.abs())(m.main(x)),
    "the other waits for an unfitted site": lambda m, x: m.main(x) + m.side(x),
}
# Additions in whose run it turns out that there is nothing to repair.
UNREPAIRED: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "a size": lambda m, x: m.main(x) + x.size(-1),
    "tokens as channels": lambda m, x: (lambda t: t + m.norm(m.main(t)))(x[:, None].expand(-1, 12, -1)),
    "fewer tokens as channels": lambda m, x: (lambda t: t + m.few(m.main(t)))(x[:, None].expand(-1, 7, -1)),
}


@pytest.mark.parametrize("kind", LINKED)
def test_additions_that_link(kind: str) -> None:
    model = block(kind)
    links = links_of(model, {"main"}, torch.randn(4, 8))
    assert set(links) == {"main"}
    scale = links["main"].scale
    if "norm" not in kind:
        assert scale is None
    else:
        expected = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        torch.testing.assert_close(scale, expected)


@pytest.mark.parametrize("kind", UNLINKED)
def test_what_makes_no_link(kind: str) -> None:
    model = block(kind)
    sites = {"main", "side"} if "unfitted" in kind else {"main"}
    assert "main" not in links_of(model, sites, torch.randn(4, 8))


def test_the_last_of_two_branches_links() -> None:
    """Both summands are sites: the first cannot wait for the second, the second sees what the first became."""
    model = make(lambda: Block(lambda m, x: m.main(x) + m.side(x)))
    assert set(links_of(model, {"main", "side"}, torch.randn(4, 8))) == {"side"}


def test_links_of_a_residual_network() -> None:
    model = make(Residual)
    every = {f"block{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2)} | {"stem", "block2.downsample.0", "head"}
    assert set(links_of(model, every, torch.randn(2, 3, 8, 8))) == {
        "block1.conv2",
        "block2.downsample.0",
        "block3.conv2",
    }
    # A dense shortcut is computed before the convolution that it corrects.
    assert "block2.conv2" in links_of(model, every - {"block2.downsample.0"}, torch.randn(2, 3, 8, 8))


def test_the_correction() -> None:
    y, dense, compressed = (torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    scale = torch.tensor([2.0, -0.5, 1e-6])
    got = corrected(y, dense, compressed, scale)
    # What goes into the addition is right again in channels with a usable scale, untouched in the others.
    torch.testing.assert_close((scale * got + compressed)[..., :2], (scale * y + dense)[..., :2])
    assert torch.equal(got[..., 2], y[..., 2])
    assert torch.equal(corrected(y, dense, compressed, None), y + (dense - compressed))
    assert torch.equal(corrected(y, dense, compressed, torch.zeros(3)), y)


def test_the_correction_of_groups_has_their_own_scales() -> None:
    y, dense, compressed = (torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    scale = torch.rand(6) + 0.5
    got = corrected(y, dense, compressed, scale)
    for group in range(2):
        alone = corrected(y[group, None], dense[group, None], compressed[group, None], scale[3 * group : 3 * group + 3])
        torch.testing.assert_close(got[group], alone[0])


class Maps(nn.Module):
    """One addition of maps whose width is their number of channels."""

    def __init__(self, combine: Callable[[Maps, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU())
        self.main = nn.Conv2d(12, 12, 3, padding=1)
        self.along = nn.Linear(12, 12)
        self.norm = nn.BatchNorm2d(12)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self, self.stem(x))


MAPS: dict[str, Callable[[Maps, Tensor], Tensor]] = {
    "maps": lambda m, x: x + m.norm(m.main(x)),
    "maps, an earlier value": lambda m, x: (lambda y, z: (y + x) * torch.sigmoid(z))(*with_norm(m, x)),
    "maps, a norm by batch statistics": lambda m, x: x + m.norm(m.main(x)),
    "maps, columns as channels": lambda m, x: x + m.norm(m.along(x)),
}


def factors(kind: str, engine: str) -> dict[str, Tensor]:
    """The state of a network whose layers are all factorised."""
    if kind in MAPS:
        model, data = make(lambda: Maps(MAPS[kind])), batches_of(16, 3, 5, 12, count=2)
        if "batch statistics" in kind:
            model.norm.running_mean = model.norm.running_var = None
    else:
        model, data = block(kind), batches_of(64, 8, count=2)
    sites = rw.find(model, data[0])
    plan = plan_of(sites, {name: ("svd", (4,)) for name, site in sites.items() if site.calls})
    return rw.factorise(model, plan, data=data, positions="all", engine=engine).state_dict()


EVERY = {**LINKED, **UNLINKED, **UNREPAIRED, **MAPS}
REPAIRED = {*LINKED, "maps", "the other waits for an unfitted site"}  # the last of two branches is repaired


@pytest.mark.parametrize("engine", ["graph", "hooks"])
@pytest.mark.parametrize("kind", EVERY)
def test_both_engines_repair_the_same(kind: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got = factors(kind, engine)
    expected = factors(kind, "graph") if kind in REPAIRED else {}
    monkeypatch.setattr(import_module("rankwise.factorisation.sequential"), "corrected", lambda y, *_: y)
    uncorrected = factors(kind, "graph")
    for name, value in (expected or uncorrected).items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)
    if expected:
        assert any((got[name] - value).abs().max() > 1e-3 for name, value in uncorrected.items())


class Deep(nn.Module):
    """Blocks of two convolutions along one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.convs = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(8)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(0, 8, 2):
            y = F.relu(self.norms[i](self.convs[i](x)))
            x = F.relu(x + self.norms[i + 1](self.convs[i + 1](y)))
        return x


@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_corrected_targets_lower_the_error_of_the_blocks(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = batches_of(32, 3, 10, 10, count=2, seed=99)
    ratios = []
    for seed in range(3):
        model, data = make(Deep, seed), batches_of(64, 3, 10, 10, count=2, seed=seed)
        sites = rw.find(model, data[0][:1])
        plan = plan_of(sites, {f"convs.{i}": ("svd", (6,)) for i in range(8)})
        expected = outputs(model, fresh)
        errors = []
        for use in (True, False):
            with monkeypatch.context() as patch:
                if not use:
                    patch.setattr(import_module("rankwise.factorisation.sequential"), "corrected", lambda y, *_: y)
                small = rw.factorise(model, plan, data=data, engine=engine)
            errors.append(float((outputs(small, fresh) - expected).square().mean()))
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / 3 < 0.97


def test_the_mean_of_a_block_is_right() -> None:
    """Where every row is used, the addition's mean is the dense one's, although its other summand is not."""
    model, data = make(Residual), batches_of(16, 3, 8, 8)
    plan = plan_of(rw.find(model, data[0][:1]), {"stem": ("svd", (3,)), "block1.conv2": ("svd", (5,))})
    small = rw.factorise(model, plan, data=data, positions="all", engine="graph")

    def addition(network: nn.Module) -> Tensor:
        with torch.no_grad():
            x = F.relu(network.stem(torch.cat(data)))
            block = network.block1
            return (block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + x).mean((0, 2, 3))

    torch.testing.assert_close(addition(small), addition(model), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        stems = [F.relu(network.stem(torch.cat(data))).mean((0, 2, 3)) for network in (small, model)]
    assert (stems[0] - stems[1]).abs().max() > 1e-4

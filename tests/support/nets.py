"""What several test files share: small networks, batches, plans, and a guard that a model was left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise import FORMATS, LowRank, Plan, PlanRow, Sites

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
)


@contextmanager
def unchanged(model: nn.Module, rng: bool = True) -> Iterator[None]:
    """Fails where the block leaves another model behind than it found, also after an exception."""

    def look() -> dict[str, Any]:
        modules = dict(model.named_modules(remove_duplicate=False))
        return {
            "modules": {name: id(module) for name, module in modules.items()},
            "classes": {name: type(module) for name, module in modules.items()},
            "training": {name: module.training for name, module in modules.items()},
            "hooks": {
                (name, table): dict(getattr(module, table)) for name, module in modules.items() for table in HOOKS
            },
            "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        }

    before = look()
    tensors = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    state = torch.get_rng_state()
    try:
        yield
    finally:
        for key, value in look().items():
            assert value == before[key], key
        after = dict((*model.named_parameters(), *model.named_buffers()))
        assert after.keys() == tensors.keys()
        for name, tensor in after.items():
            assert torch.equal(tensor.nan_to_num(), tensors[name].nan_to_num()), name
        assert not rng or torch.equal(torch.get_rng_state(), state), "the random state moved"


def batches_of(*shape: int, count: int = 4, seed: int = 0) -> list[Tensor]:
    """Batches of unit normal values."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def lost(plan: Plan) -> float:
    """1 less the product of what the sites keep of their outputs."""
    return 1 - math.prod(1 - (row.error or 0.0) for row in plan.rows)


def plan_of(sites: Sites, rows: Mapping[str, tuple[str, tuple[int, ...]]], metric: str = "input") -> Plan:
    """A plan written by hand: format and ranks of the named sites, all others dense."""
    made = []
    for name, site in sites.items():
        format, ranks = rows.get(name, ("dense", ()))
        if format == "dense":
            made.append(PlanRow(site=name, params=site.params, macs=site.macs))
        else:
            cost = FORMATS[format].cost(site, ranks, site.chain_bias(metric))
            made.append(PlanRow(site=name, format=format, ranks=ranks, params=cost.params, macs=cost.macs))
    assert rows.keys() <= sites.keys()
    return Plan(rows=tuple(made), metric=metric, fingerprint=sites.fingerprint)


def chains(model: nn.Module) -> dict[str, LowRank]:
    """The factorised layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


@torch.no_grad()
def outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """Outputs in eval mode, all batches in one tensor."""
    model.eval()
    return torch.cat(
        [model(**b) if isinstance(b, dict) else model(*b) if isinstance(b, tuple) else model(b) for b in batches]
    )


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with batch-norm statistics and affine parameters that are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return model


class Residual(nn.Module):
    """Residual blocks with batch norm, in-place ReLU and addition, a convolution in the second shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.block1 = ResidualBlock(12, 12, 1)
        self.block2 = ResidualBlock(12, 16, 2)
        self.block3 = ResidualBlock(16, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(F.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = stride == 1 and inputs == width
        self.downsample = (
            None if same else nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def make(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with seeded weights, in eval mode, its batch norms settled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return settled(build()).eval()


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same tensors under the same names, to the bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())

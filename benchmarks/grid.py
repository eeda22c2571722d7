"""Check every kind of layer in every format and number type, at full rank, from the plan to the network.

    python -m benchmarks.grid [--only WORD ...] [--quick] [--json FILE]

In each cell, one layer is factorised at the least ranks at which its format is exact. The result must compute the same
as the layer, within the rounding of its type (`ROUNDINGS`) relative to the largest output. Counted parameters and MACs
must equal the planned ones to the unit, and the type must be kept. If the format refuses the layer, `factorise` must
refuse it with the same reason; such cells are counted separately. The status is 1 if there is a fault.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, parser, report, start
from benchmarks.grid_layers import LAYERS
from rankwise.formats import Format, Ranks

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Times the distance of 1 and the next number. A chain rounds factors and what goes between them; fits round in float64.
ROUNDINGS = {"float32": 16, "float16": 4, "bfloat16": 4, "float64": 64}
WORDS, WIDTH = 40, 12
COLUMNS = ("what", "cells", "refused", "faults", "largest difference")


class Tied(nn.Module):
    """An embedding and the head that shares its weight."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.words(tokens))
        return output


NETWORKS = {
    "embedding": lambda: nn.Embedding(WORDS, WIDTH),
    "tied": lambda: Tied(False),
    "tied, bias": lambda: Tied(True),
}
NAMES = (*LAYERS, *NETWORKS)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One layer in one format and type.

    Attributes:
        refused: why the format refuses the layer, in its words.
        difference: of the outputs, relative to the largest output of the dense layer.
        faults: what is wrong, in words.
    """

    kind: str
    format: str
    dtype: str
    refused: str | None = None
    difference: float = 0.0
    faults: tuple[str, ...] = ()


def network(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network of one layer, with values of similar size, and an input."""
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        if kind in NETWORKS:
            model, x = nn.Sequential(NETWORKS[kind]()), torch.randint(WORDS, (3, 7))
        else:
            build, shape = LAYERS[kind]
            model, x = nn.Sequential(build()), torch.randn(shape, dtype=torch.float64).to(dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.to(dtype).eval(), x


def exact_ranks(format: Format, site: rw.Site) -> Ranks:
    """The least ranks at which a format is exact: one block, a ring that is a train."""
    limits = format.limits(site)
    return (1, *limits[1:]) if format.name in ("btd", "tr", "str") else limits


def cell(kind: str, format: Format, dtype: str) -> Cell:
    """Factorise a layer, and check the result."""
    model, x = network(kind, DTYPES[dtype])
    sites = rw.find(model, x)
    site = next(iter(sites.values()))
    where = {"kind": kind, "format": format.name, "dtype": dtype}
    if reason := format.refuses(site):
        plan = rw.Plan(
            rows=(rw.PlanRow(site=site.name, format=format.name, ranks=(1,), params=1, macs=1),), metric="weight"
        )
        return Cell(**where, refused=reason, faults=() if _refused(model, plan, sites, reason) else ("is not refused",))
    ranks = exact_ranks(format, site)
    cost = format.cost(site, ranks, site.has_bias)
    row = rw.PlanRow(site=site.name, format=format.name, ranks=ranks, params=cost.params, macs=cost.macs)
    try:
        small = rw.factorise(model, rw.Plan(rows=(row,), metric="weight", fingerprint=sites.fingerprint), sites)
        counted = rw.find(small, x)
        with torch.no_grad():
            wanted, found = model.double()(_double(x)), small(x)
    except Exception as error:  # whatever it is, it is a fault of this cell
        return Cell(**where, faults=(f"{type(error).__name__}: {error}",))
    difference = float((found.double() - wanted).abs().max() / wanted.abs().max())
    most = ROUNDINGS[dtype] * torch.finfo(DTYPES[dtype]).eps
    planned = sites.total_params + cost.params - site.params, sites.total_macs + cost.macs - site.macs
    faults = {
        f"differs by {difference:.1e}, more than {most:.1e}": not difference <= most,
        f"has {counted.total_params} parameters, {planned[0]} are planned": counted.total_params != planned[0],
        f"has {counted.total_macs} MACs, {planned[1]} are planned": counted.total_macs != planned[1],
        f"gives {found.dtype}": found.dtype != DTYPES[dtype],
    }
    return Cell(**where, difference=difference, faults=tuple(fault for fault, is_one in faults.items() if is_one))


def _refused(model: nn.Module, plan: rw.Plan, sites: rw.Sites, reason: str) -> bool:
    try:
        rw.factorise(model, plan, sites)
    except ValueError as error:
        return reason in str(error)
    return False


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def cells(kinds: Any = NAMES, formats: Any = None, dtypes: Any = tuple(DTYPES)) -> Iterator[Cell]:
    """A part of the grid, by default all of it."""
    for kind in kinds:
        for format in rw.FORMATS.values() if formats is None else formats:
            for dtype in dtypes:
                yield cell(kind, format, dtype)


def diagonal() -> list[tuple[str, str, str]]:
    """A part of the grid in which every kind, format and type occurs."""
    formats, dtypes = list(rw.FORMATS), list(DTYPES)
    places = [(n % len(formats), (n + n // len(formats)) % len(dtypes)) for n in range(len(NAMES))]
    return [(kind, formats[i], dtypes[j]) for kind, (i, j) in zip(NAMES, places, strict=True)]


def summary(found: list[Cell]) -> list[Row]:
    """The cells of each format and type."""
    rows: list[Row] = []
    for name in (*rw.FORMATS, *DTYPES):
        own = [each for each in found if name in (each.format, each.dtype)]
        done = [each for each in own if each.refused is None]
        if own:
            rows.append(
                {
                    "what": name,
                    "cells": len(own),
                    "refused": len(own) - len(done),
                    "faults": sum(bool(each.faults) for each in own),
                    "largest difference": f"{max((each.difference for each in done), default=0.0):.1e}",
                }
            )
    return rows


def told(found: list[Cell]) -> str:
    """The size of the grid, what was refused and why, in a few lines."""
    refused = Counter(each.refused for each in found if each.refused)
    lines = [f"{count} refused: {reason}" for reason, count in refused.most_common()]
    faults = [f"{each.kind}, {each.format}, {each.dtype}: {'; '.join(each.faults)}" for each in found if each.faults]
    kinds, formats, dtypes = (len({getattr(each, key) for each in found}) for key in ("kind", "format", "dtype"))
    lines.append(
        f"{len(found)} cells of {kinds} layers x {formats} formats x {dtypes} types: "
        f"{len(found) - refused.total()} factorised, {refused.total()} refused, {len(faults)} faults"
    )
    return "\n".join([*faults, *lines])


def main() -> None:
    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--only", nargs="+", default=[], help="only layers, formats or types with one of these words")
    arguments = options.parse_args()
    start(arguments)
    grid = [(kind, format, dtype) for kind in NAMES for format in rw.FORMATS for dtype in DTYPES]
    wanted = diagonal() if arguments.quick else grid
    wanted = [each for each in wanted if not arguments.only or any(word in each for word in arguments.only)]
    found = [cell(kind, rw.FORMATS[format], dtype) for kind, format, dtype in wanted]
    report(summary(found), COLUMNS, "at full rank", arguments.json)
    print(told(found))
    sys.exit(1 if not found or any(each.faults for each in found) else 0)


if __name__ == "__main__":
    main()

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.network.patterns import matching, near


class Odd(nn.Module):
    """Layers whose names look like patterns, beside layers that these would match."""

    NAMES = ("blocks[0]", "blocks0", "a*b", "axb", "re:x", "x", "q?")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.NAMES:
            x = self._modules[name](x)  # type: ignore[misc]
        return x


@pytest.mark.parametrize("name", Odd.NAMES)
def test_an_exact_name_comes_before_what_it_describes(name: str) -> None:
    assert matching(name, Odd.NAMES) == [name]
    sites = rw.find(Odd(), torch.zeros(1, 8))
    assert [site.name for site in sites.select(name)] == [name]
    plan = rw.choose(Odd(), sites, keep={"params": 1.0}, metric="weight", pin={name: "svd:2"}, include=name)
    assert [row.site for row in plan.factorised] == [name]


def test_what_is_no_name_is_a_pattern() -> None:
    assert matching("blocks*", Odd.NAMES) == ["blocks[0]", "blocks0"]
    assert matching("a?b", Odd.NAMES) == ["a*b", "axb"]
    assert matching("re:[xa].*", Odd.NAMES) == ["a*b", "axb", "x"]
    assert matching("nothing", Odd.NAMES) == []
    with pytest.raises(ValueError, match=r"'re:\(' is not a valid regular expression"):
        matching("re:(", Odd.NAMES)


def test_the_name_of_a_layer_that_is_never_called_is_no_glob() -> None:
    model = nn.Sequential()
    model.add_module("a0", nn.Linear(4, 4))
    model.idle = nn.ModuleDict({"a?": nn.Linear(4, 4)})
    model.forward = model.a0.forward  # type: ignore[method-assign]
    sites = rw.find(nn.Sequential(model), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="never calls"):
        sites.select("0.idle.a?")


def test_near_names() -> None:
    assert near("blocks1", Odd.NAMES).startswith("blocks0")
    assert near("zzz", Odd.NAMES) == ", ".join(Odd.NAMES[:5])

"""Replacing modules under all their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.network.replacing import module_at, replace


class Shared(nn.Module):
    """One Linear as an attribute, in a list, in a dict, and in a block that is itself registered twice."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(4, 4)
        self.attribute = shared
        self.listed = nn.ModuleList([nn.ReLU(), shared])
        self.keyed = nn.ModuleDict({"weight": shared, "other": nn.Linear(4, 4)})
        self.block = nn.Sequential(shared, nn.ReLU())
        self.again = self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.block(self.attribute(x)))
        return self.keyed["other"](self.keyed["weight"](self.listed[1](x)))


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4))


@pytest.mark.parametrize("name", ["attribute", "listed.1", "keyed.weight", "block.0", "again.0"])
def test_one_name_replaces_the_shared_module_everywhere(name: str) -> None:
    model, new = Shared(), chain()
    replace(model, [name], new)
    places = [model.attribute, model.listed[1], model.keyed["weight"], model.block[0], model.again[0]]
    assert all(place is new for place in places)
    assert isinstance(model.keyed["other"], nn.Linear)
    assert model(torch.ones(1, 4)).shape == (1, 4)


def test_several_modules_become_one_chain() -> None:
    model, new = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), chain()
    replace(model, ["0", "2"], new)
    assert model[0] is model[2] is new


def test_order_of_children_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    replace(model, ["0"], chain())
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


def test_a_parametrised_layer_is_replaced_whole() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    replace(model, ["0"], chain())
    assert sorted(model.state_dict()) == ["0.0.weight", "0.1.bias", "0.1.weight"]


def test_an_unknown_name_changes_nothing() -> None:
    model = Shared()
    before = model.attribute
    with pytest.raises(ValueError, match=r"no module 'attribut'; near names are attribute"):
        replace(model, ["attribute", "attribut"], chain())
    assert model.attribute is before


@pytest.mark.parametrize("name", ["listed.7", "attribute.weight", "block.0.deeper", "."])
def test_names_that_are_no_modules(name: str) -> None:
    with pytest.raises(ValueError, match="has no module"):
        module_at(Shared(), name)


def test_the_model_itself_must_be_wrapped() -> None:
    with pytest.raises(ValueError, match=r"wrap it first: model = nn\.Sequential\(model\)"):
        replace(nn.Linear(4, 4), [""], chain())

"""Put a chain of layers in the place of a site's module."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn


def replace(model: nn.Module, site_names: Sequence[str], chain: nn.Module) -> None:
    """Put `chain` wherever the named modules stand in `model`, under all their names.

    A module that several parents share, or that one parent registers under several names, is replaced everywhere, so
    what was shared stays shared. Nothing is changed when a name is wrong.

    Args:
        model: the network, changed in place.
        site_names: qualified names of a site: its own and its aliases (modules tied to its weight).
        chain: the module that takes their place.

    Raises:
        ValueError: if a name does not exist, or names the model itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        >>> replace(model, ["0"], nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8)))
        >>> [name for name, _ in model.named_parameters()]
        ['0.0.weight', '0.1.weight', '0.1.bias']
    """
    old = {id(module_at(model, name)) for name in site_names}
    slots = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if id(child) in old]
    for parent, key in slots:
        parent.add_module(key, chain)


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that qualified name, which has a parent to replace it in.

    Raises:
        ValueError: if there is none, or the name is the model's own.
    """
    if name == "":
        raise ValueError(
            f"the model itself is the {type(model).__name__} to replace, and nothing holds it; "
            f"wrap it first: model = nn.Sequential(model)"
        )
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [known for known, _ in model.named_modules(remove_duplicate=False) if known]
        near = ", ".join(difflib.get_close_matches(name, known, n=3) or known[:3])
        raise ValueError(
            f"{type(model).__name__} has no module {name!r}; near names are {near or 'none, it has no children'}"
        ) from None

"""Put modules in the place of others, under all their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..running.pristine import HOOK_TABLES
from .hub import guard_pretrained
from .patterns import near
from .references import redirect

# Hooks of calls and gradients move to the chain. Hooks of state dicts expect a weight that a chain does not have.
_TABLES = (*HOOK_TABLES, "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook")


def put(model: nn.Module, chains: Mapping[str, nn.Module]) -> None:
    """Replace the layers of a site in place: qualified name of a layer -> its chain."""
    replace_all(model, chains)
    guard_pretrained(model)
    tables = [name for name, chain in chains.items() if getattr(chain, "kind", None) == "embedding"]
    if heads := [name for name in chains if tables and name not in tables]:
        _rename_ties(model, tables, heads)
    elif len(chains) > 1:
        _list_ties(model, chains)


def replace(model: nn.Module, site_names: Sequence[str], chain: nn.Module) -> None:
    """Put `chain` wherever the named modules stand in `model`, under all their names.

    A module that several parents share, or that one parent registers under several names, is replaced everywhere, also
    in lists, dictionaries and the like: what was shared stays shared. Its forward and backward hooks move to the chain.
    Nothing is changed when a name is wrong.

    Args:
        model: the network, changed in place.
        site_names: qualified names of a site: its own and its aliases (modules tied to its weight).

    Raises:
        ValueError: if a name does not exist, or names the model itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        >>> replace(model, ["0"], nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8)))
        >>> [name for name, _ in model.named_parameters()]
        ['0.0.weight', '0.1.weight', '0.1.bias']
    """
    replace_all(model, dict.fromkeys(site_names, chain))


def replace_all(model: nn.Module, chains: Mapping[str, nn.Module]) -> None:
    """`replace` for many layers: qualified name of a layer -> the module that takes its place."""
    new = {module_at(model, name): chain for name, chain in chains.items()}
    slots = [(parent, key, child) for parent in model.modules() for key, child in parent._modules.items()]
    for parent, key, child in slots:
        if child is not None and child in new:
            parent.add_module(key, new[child])
    redirect(model, new)
    for layer, chain in new.items():
        # The tables themselves are swapped: a handle that the user keeps removes its hook from the table object.
        for table in _TABLES:
            layer.__dict__[table], chain.__dict__[table] = chain.__dict__[table], layer.__dict__[table]


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that qualified name.

    Raises:
        ValueError: if there is none, or it is the model itself, which no parent holds.
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
        raise ValueError(
            f"{type(model).__name__} has no module {name!r}; near names are {near(name, known) or 'none'}"
        ) from None


def _list_ties(model: nn.Module, chains: Mapping[str, nn.Module]) -> None:
    """Add the factors that several chains share to transformers' lists of tied parameters."""
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, chain in chains.items():
        for own, parameter in chain.named_parameters(f"{name}"):
            if (source := first.setdefault(id(parameter), own)) != own:
                ties[own] = source
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys") if ties else ():
        listed = getattr(model, attribute, None)
        if hasattr(model, "all_tied_weights_keys"):
            setattr(model, attribute, {**(listed or {}), **ties})


def _rename_ties(model: nn.Module, tables: Sequence[str], heads: Sequence[str]) -> None:
    """Rename tied parameters in the lists that transformers' `tie_weights` and `save_pretrained` go by.

    `{"head.weight": "embedding.weight"}` becomes `{"head.1.weight": "embedding.0.weight", "head.0.weight":
    "embedding.1.weight"}`.
    """
    factors = {f"{table}.weight": (f"{table}.0.weight", f"{table}.1.weight") for table in tables}
    factors |= {f"{head}.weight": (f"{head}.1.weight", f"{head}.0.weight") for head in heads}
    for owner, module in model.named_modules():
        prefix = f"{owner}." if owner else ""
        inside = {
            name.removeprefix(prefix): [each.removeprefix(prefix) for each in pair]
            for name, pair in factors.items()
            if name.startswith(prefix)
        }
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            listed = getattr(module, attribute, None)
            if not isinstance(listed, Mapping):
                continue
            renamed: dict[str, str] = {}
            for target, source in listed.items():
                both = target in inside and source in inside
                renamed |= zip(inside[target], inside[source], strict=True) if both else {target: source}
            if renamed != listed:
                setattr(module, attribute, renamed)

"""Put modules in the place of others, under all their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from ..running.pristine import HOOK_TABLES
from .hub import refuse_pretrained
from .references import redirect

# Hooks of calls and gradients. Those of state dicts speak of a weight that a chain does not have.
_TABLES = (*HOOK_TABLES, "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook")


def put(model: nn.Module, chains: Mapping[str, nn.Module]) -> None:
    """Put the chains of a site in the place of its layers.

    Args:
        model: the network, changed in place.
        chains: qualified name of a layer -> its chain.
    """
    replace_all(model, chains)
    refuse_pretrained(model)
    tables = [name for name, chain in chains.items() if getattr(chain, "kind", None) == "embedding"]
    if heads := [name for name in chains if tables and name not in tables]:
        _rename_ties(model, tables, heads)


def replace(model: nn.Module, site_names: Sequence[str], chain: nn.Module) -> None:
    """Put `chain` wherever the named modules stand in `model`, under all their names.

    A module that several parents share, or that one parent registers under several names, is replaced everywhere, so
    what was shared stays shared; so it is where a parent holds it in a list, a dictionary or the like. Its forward and
    backward hooks go on to the chain. Nothing is changed when a name is wrong.

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
        _swap_hooks(layer, chain)


def _swap_hooks(layer: nn.Module, chain: nn.Module) -> None:
    # The tables themselves change hands: a handle that the user keeps removes its hook from the table it was made for.
    for table in _TABLES:
        layer.__dict__[table], chain.__dict__[table] = chain.__dict__[table], layer.__dict__[table]


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


def _rename_ties(model: nn.Module, tables: Sequence[str], heads: Sequence[str]) -> None:
    """Name the shared factors to transformers, whose models list by name which Parameter takes the place of which.

    Its `tie_weights` and `save_pretrained` go by that list: `{"head.weight": "embedding.weight"}` becomes
    `{"head.1.weight": "embedding.0.weight", "head.0.weight": "embedding.1.weight"}`.
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

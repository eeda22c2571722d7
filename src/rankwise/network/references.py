"""Layers held outside the registry of modules: in plain attributes, lists, dictionaries, partial calls."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..running.guards import in_words

_CONTAINERS = (list, dict, tuple, set, functools.partial, types.MethodType)
# Nested containers are followed this deep; containers longer than this hold data, not layers.
_DEPTH, _LONGEST = 4, 10_000
# Bound methods of a layer that the same method of its replacement can stand for.
_CALLS = ("forward", "__call__", "_wrapped_call_impl")


def redirect(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Replace layers in place wherever a model holds them outside the registry of modules.

    Args:
        replaced: old layer -> the new one.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.stack = [model[0]]
        >>> new = nn.Linear(2, 2)
        >>> redirect(model, {model[0]: new})
        >>> model.stack[0] is new
        True
    """
    for owner, name, value in _held(model):
        changed = _redirected(value, replaced, _DEPTH)
        if changed is not value:
            owner.__dict__[name] = changed


def closure_of(model: nn.Module, layer: nn.Module) -> str | None:
    """The function whose closure holds a layer or a module around it, in words; None where there is none.

    A copy of the model shares its closures: they still hold the layer of the first model.
    """
    within = {id(module) for module in model.modules() if layer in module.modules()}
    for owner_name, owner in model.named_modules():
        hooks = {"a forward hook": owner._forward_hooks, "a forward pre-hook": owner._forward_pre_hooks}
        functions = [(f"attribute {name!r}", value) for name, value in vars(owner).items() if not name.startswith("_")]
        functions += [(word, hook) for word, table in hooks.items() for hook in table.values()]
        for word, function in functions:
            cells = getattr(function, "__closure__", None) or ()
            if any(id(_content(cell)) in within for cell in cells):
                return f"{word} of {in_words(owner, owner_name)}"
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _held(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Owner, name and value of the attributes that may hold a layer."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            registry = name in ("_modules", "_parameters", "_buffers") or name.endswith("_hooks")
            if not registry and isinstance(value, (*_CONTAINERS, nn.Module)):
                yield module, name, value


def _redirected(value: Any, replaced: Mapping[nn.Module, nn.Module], depth: int) -> Any:
    """The value with the new layers: the same object where it can be changed in place or holds none of the old."""
    if isinstance(value, nn.Module):
        return replaced.get(value, value)
    if not isinstance(value, _CONTAINERS) or depth == 0:
        return value
    if isinstance(value, types.MethodType):
        new = replaced.get(value.__self__) if isinstance(value.__self__, nn.Module) else None
        return value if new is None or value.__name__ not in _CALLS else getattr(new, value.__name__)
    again = functools.partial(_redirected, replaced=replaced, depth=depth - 1)
    if isinstance(value, functools.partial):
        old = (value.func, value.args, value.keywords)
        made = (again(value.func), again(value.args), {key: again(item) for key, item in value.keywords.items()})
        same = made[0] is old[0] and made[1] is old[1] and all(made[2][key] is old[2][key] for key in old[2])
        return value if same else functools.partial(made[0], *made[1], **made[2])
    if len(value) > _LONGEST:
        return value
    if isinstance(value, tuple):
        items = [again(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, set):
        changed = {item: again(item) for item in value if isinstance(item, nn.Module)}
        for item, new in changed.items():
            if new is not item:
                value.remove(item)
                value.add(new)
        return value
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if (new := again(item)) is not item:
            value[key] = new
    return value

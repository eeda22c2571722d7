"""Commands whose options come in groups: frozen dataclasses whose fields typer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: the fields of each group take the group's place in the signature.

    Args:
        function: takes groups (dataclasses of options), and single options beside them.

    Example:
        >>> from rankwise.cli.options.base import Telling
        >>> list(signature(command(lambda: None)).parameters)
        []
        >>> def show(name: str, tell: Telling) -> None: ...
        >>> list(signature(command(show)).parameters)
        ['name', 'json', 'quiet', 'verbose', 'log', 'config', 'debug']
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for name, single in signature(function).parameters.items():
        group = groups.get(name)
        options = [single] if group is None else list(signature(group).parameters.values())
        types = hints if group is None else get_type_hints(group, include_extras=True)
        parameters += [each.replace(kind=Parameter.KEYWORD_ONLY, annotation=types[each.name]) for each in options]

    @wraps(function)
    def run(**options: Any) -> None:
        made = {}
        for name, kind in groups.items():
            made[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        function(**made, **options)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # read by inspect before anything else
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run

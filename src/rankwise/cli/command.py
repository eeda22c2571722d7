"""Commands whose options come in groups: frozen dataclasses whose fields typer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

KEYWORD = Parameter.KEYWORD_ONLY


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
        ['name', 'json', 'debug']
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for name, single in signature(function).parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(single.replace(kind=KEYWORD, annotation=hints[name]))

    @wraps(function)
    def run(**options: Any) -> None:
        made = {}
        for name, kind in groups.items():
            made[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        function(**made, **options)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # read by inspect before anything else
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _options_of(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(field.name, KEYWORD, default=_default(field), annotation=hints[field.name]) for field in fields(group)
    ]


def _default(field: Field[Any]) -> Any:
    return Parameter.empty if field.default is MISSING else field.default

"""Packages that only some exports and engines need."""

from __future__ import annotations

from importlib import import_module


def require(what: str, extra: str, *modules: str) -> None:
    """Import the modules that an extra installs.

    Raises:
        ImportError: naming the missing module, with the command that installs it.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(f"{what} needs {error.name}: pip install 'rankwise[{extra}]'") from error

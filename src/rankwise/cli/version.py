"""The version of the installed package, read without importing it."""

from importlib.metadata import version as installed_version


def version() -> str:
    """The version of Rankwise."""
    return installed_version("rankwise")

"""The version of the installed package, read without importing it."""


def version() -> str:
    """The version of Rankwise."""
    from importlib.metadata import version as installed_version  # reads mail headers, which takes a while to import

    return installed_version("rankwise")

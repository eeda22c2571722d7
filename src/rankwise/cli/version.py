"""The version of the installed package, read without importing it."""


def version() -> str:
    """The version of Rankwise."""
    from importlib.metadata import version as installed_version  # slow to import: it brings the email package

    return installed_version("rankwise")

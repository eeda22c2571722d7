"""`python -m rankwise`: the command line without its entry point."""

from .cli.app import main

main()

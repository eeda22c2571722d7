"""`python -m rankwise`: the command line without its entry point."""

from rankwise.cli import main

main()

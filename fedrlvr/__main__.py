"""Entry point of `python -m fedrlvr`, the same as the command `fedrlvr`."""

from fedrlvr.cli.main import main

main()

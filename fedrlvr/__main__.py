"""`python -m fedrlvr`."""

from fedrlvr.cli.main import main

main()

"""`python -m fedrlvr`."""

from fedrlvr.cli import main

main()

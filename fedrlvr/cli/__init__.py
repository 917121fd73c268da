"""The command line. `fedrlvr.cli.main` is the entry point; each group of commands has a module of its own."""

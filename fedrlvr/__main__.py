"""Entry point of `python -m fedrlvr`, the same as the command `fedrlvr`."""

from fedrlvr.interrupts import end, install


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end with a line, also while it is imported."""
    install()
    try:
        from fedrlvr.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        end()


if __name__ == "__main__":
    main()

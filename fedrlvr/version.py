"""The version, for the package itself and for what names it in files and messages."""

__version__ = "0.12.0"

"""Measurements for the docs, run as `scripts/bench NAME`; no part of the package."""

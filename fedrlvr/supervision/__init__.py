"""Seam 1: where the reward comes from. Pure; a method is one file with one class that has `supervise`."""

from fedrlvr.supervision.labels import TrueLabels
from fedrlvr.supervision.types import Ledger, Supervised, Supervision

__all__ = ["Ledger", "Supervised", "Supervision", "TrueLabels"]

"""Seam 1: where the reward comes from. Pure; a method is one file with one class that has `supervise`."""

from fedrlvr.supervision.cag import cag, corrective_advantage_gap
from fedrlvr.supervision.labels import TrueLabels
from fedrlvr.supervision.majority import majority
from fedrlvr.supervision.types import Ledger, Supervised, Supervision

__all__ = ["Ledger", "Supervised", "Supervision", "TrueLabels", "cag", "corrective_advantage_gap", "majority"]

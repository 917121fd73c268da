"""Seam 1: where the reward comes from. Pure; a method is one class that has `supervise`.

Nothing here needs torch. CARE, which does, is in `care`, with its probes in `judge` and what they see in `features`.
TraPO, which stores its trajectories in tensors, is in `trapo`, and GeoMin in `geomin`.
"""

from fedrlvr.supervision.acquisition import Spending, true_worth
from fedrlvr.supervision.cag import cag, corrective_advantage_gap
from fedrlvr.supervision.majority import Clusters, clusters, majority
from fedrlvr.supervision.selection import MajorityVotes, Selection, TrueLabels
from fedrlvr.supervision.types import Fate, Ledger, Query, Step, Supervised, Supervision

__all__ = [
    "Clusters",
    "Fate",
    "Ledger",
    "MajorityVotes",
    "Query",
    "Selection",
    "Spending",
    "Step",
    "Supervised",
    "Supervision",
    "TrueLabels",
    "cag",
    "clusters",
    "corrective_advantage_gap",
    "majority",
    "true_worth",
]

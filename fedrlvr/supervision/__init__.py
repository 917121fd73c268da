"""Seam 1: where the reward comes from. Pure; a method is one file with one class that has `supervise`."""

from fedrlvr.supervision.acquisition import oracle_gap
from fedrlvr.supervision.cag import cag, corrective_advantage_gap
from fedrlvr.supervision.care import Care
from fedrlvr.supervision.features import features
from fedrlvr.supervision.judge import Judge, Settings
from fedrlvr.supervision.majority import Clusters, clusters, majority
from fedrlvr.supervision.majority_votes import MajorityVotes
from fedrlvr.supervision.query import Query
from fedrlvr.supervision.selection import Selection
from fedrlvr.supervision.true_labels import TrueLabels
from fedrlvr.supervision.types import Fate, Ledger, Step, Supervised, Supervision

__all__ = [
    "Care",
    "Clusters",
    "Fate",
    "Judge",
    "Ledger",
    "MajorityVotes",
    "Query",
    "Selection",
    "Settings",
    "Step",
    "Supervised",
    "Supervision",
    "TrueLabels",
    "cag",
    "clusters",
    "corrective_advantage_gap",
    "features",
    "majority",
    "oracle_gap",
]

"""The eight problem families, each a small table of functions; see `family.Family`."""

from __future__ import annotations

from fedrlvr.zoo.families.arithmetic import DIFFERENCE, PRODUCT, REMAINDER, SUM
from fedrlvr.zoo.families.clinical import DOSE, DRIP, SCORE, UNIT
from fedrlvr.zoo.families.family import LEVELS, Family, Level, Pen

ALL: tuple[Family, ...] = (SUM, DIFFERENCE, PRODUCT, REMAINDER, DOSE, DRIP, UNIT, SCORE)

__all__ = ["ALL", "LEVELS", "Family", "Level", "Pen"]

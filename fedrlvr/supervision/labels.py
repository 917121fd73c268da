"""True labels: every problem's own answer decides, and every group counts in full. This is plain RLVR."""

from __future__ import annotations

from fedrlvr.rl.samples import Group
from fedrlvr.supervision.types import Ledger, Supervised


class TrueLabels:
    """Supervision by the ledger alone."""

    def supervise(self, group: Group, ledger: Ledger) -> Supervised:
        """The true rewards of the group.

        Raises:
            ValueError: the ledger has no label for the problem; this supervision has nothing to put in its place.
        """
        rewards = ledger.grade(group.problem, [response.text for response in group.responses])
        if rewards is None:
            raise ValueError(f"problem {group.problem.id} has no label, and supervision by true labels needs one")
        return Supervised(rewards)

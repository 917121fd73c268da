"""Majority votes in place of labels, for every problem (TTRL, arXiv 2504.16084). Nobody is asked anything.

This is what collapses where the majority is confidently wrong; it is here to be compared with.
"""

from __future__ import annotations

from fedrlvr.supervision.types import Fate, Ledger, Step, Supervised


class MajorityVotes:
    """Supervision by the policy's own majority."""

    reads_votes = True
    reads_states = False

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """1 for each response of its group's majority, 0 for the others."""
        return [Supervised(votes.pseudo_rewards, fate=Fate.TRUSTED, true=False) for votes in step.votes]

    def learn(self) -> dict[str, float]:
        """Nothing."""
        return {}

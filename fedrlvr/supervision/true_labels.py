"""True labels: every problem's own answer decides, and every group counts in full. This is plain RLVR."""

from __future__ import annotations

from fedrlvr.supervision.types import Ledger, Step, Supervised


class TrueLabels:
    """Supervision by the ledger alone."""

    reads_votes = False
    reads_states = False

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """The true rewards of every group.

        Raises:
            ValueError: the ledger has no label for a problem; this supervision has nothing to put in its place.
        """
        verdicts = []
        for group in step.groups:
            rewards = ledger.grade(group.problem.question, [response.text for response in group.responses])
            if rewards is None:
                raise ValueError(f"problem {group.problem.id} has no label, and supervision by true labels needs one")
            verdicts.append(Supervised(rewards))
        return verdicts

    def learn(self) -> dict[str, float]:
        """Nothing."""
        return {}

"""The majority's answer as a pseudo-label (TTRL, arXiv 2504.16084; as CARE uses it, arXiv 2605.25864).

An answer joins the cluster whose first member is the same, or begins one. The largest cluster wins, ties go to the one
that began earliest. An answer that could not be read is None: it does not vote, but shares of votes are of all G
responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedrlvr.rl.samples import CORRECT

Same = Callable[[str, str], bool]
"""Function that tells whether two answers are the same to the grader."""


@dataclass(frozen=True)
class Clusters:
    """The answers of one group, in clusters of equal answers.

    labels: each cluster's first answer; clusters are in the order in which they began.
    members: each response's cluster; None: its answer could not be read.
    """

    labels: tuple[str, ...]
    members: tuple[int | None, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of responses in each cluster, in the clusters' order."""
        return tuple(self.members.count(cluster) for cluster in range(len(self.labels)))

    @cached_property
    def majority(self) -> int | None:
        """The largest cluster, the earliest of those of one size; None if no answer could be read."""
        return max(range(len(self.sizes)), key=self.sizes.__getitem__, default=None)

    @property
    def label(self) -> str | None:
        """Answer of the largest cluster; None if nobody voted."""
        return None if self.majority is None else self.labels[self.majority]

    @property
    def votes(self) -> int:
        """Number of responses that gave the majority's answer."""
        return 0 if self.majority is None else self.sizes[self.majority]

    @property
    def valid(self) -> int:
        """Number of responses with an answer that could be read."""
        return sum(self.sizes)

    @property
    def pseudo_rewards(self) -> list[float]:
        """1 for each response of the majority, 0 for the others."""
        return [float(member is not None and member == self.majority) for member in self.members]

    @property
    def others(self) -> list[bool]:
        """Whether each response has an answer that could be read and is not the majority's."""
        return [member not in (None, self.majority) for member in self.members]

    def judged(self, true_rewards: Sequence[float]) -> tuple[bool, int]:
        """Whether the majority is right, and how many responses outside it are (0 if it is).

        A cluster is right if any of its responses is, and then all of it counts, so that a user's own reward cannot
        split a cluster.

        Raises:
            ValueError: not one reward for each response.
        """
        if len(true_rewards) != len(self.members):
            raise ValueError(f"{len(true_rewards)} rewards for {len(self.members)} responses")
        right = {
            member
            for member, reward in zip(self.members, true_rewards, strict=True)
            if member is not None and reward >= CORRECT
        }
        if self.majority in right:
            return True, 0
        return False, sum(self.sizes[cluster] for cluster in right)


def clusters(answers: Sequence[str | None], same: Same | None = None) -> Clusters:
    """The answers in clusters; `same` is asked with the later answer first and is equality if left out."""
    labels: list[str] = []
    members: list[int | None] = []
    for answer in answers:
        if answer is None:
            members.append(None)
            continue
        for cluster, first in enumerate(labels):
            if answer == first or (same is not None and same(answer, first)):
                members.append(cluster)
                break
        else:
            members.append(len(labels))
            labels.append(answer)
    return Clusters(tuple(labels), tuple(members))


def majority(answers: Sequence[str | None], same: Same | None = None) -> tuple[str | None, int]:
    """The majority's answer and its votes; (None, 0) if no answer could be read."""
    votes = clusters(answers, same)
    return votes.label, votes.votes

"""Selection of a step's problems: those to ask about, those trusted by majority vote, and those left out.

CARE (arXiv 2605.25864, authors' code), of B problems:
    trusted   the ceil(0.25 B) of the largest P1, none in the first steps of a run     multiplier 1
    queries   the ceil(0.20 B) of the largest S among the rest                         multiplier 1
    masked    all others                                                               multiplier 0
Queries get their true rewards, all others the majority's. Whatever is ranked, ties go to the earlier problem.
1. Where fewer problems than the budget are left beside the trusted ones, the first of these are asked about as well,
   so that every selection spends the same budget. As with the authors.
2. The authors trust nobody in the first 20 of about 540 steps. Here it is a share of the run's steps (`vote_free_share`
   in the configuration), since 20 steps are most of a short run.
3. The authors multiply a trusted vote by clip(S, 0, 1) with S of the corrective advantage gap. That is 1 wherever the
   vote has an advantage at all, and 0 elsewhere, where the multiplier has no effect. So it is 1 here.
4. A floor under P1 is our addition, and off unless it is asked for: where majorities are seldom right, the quarter that
   is most likely to be right is mostly wrong as well.

The selections it is compared with rank by one number, and mask what they do not ask about or train on it as voted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from fedrlvr.supervision.cag import corrective_advantage_gap
from fedrlvr.supervision.majority import Clusters

TRUSTED_SHARE = 0.25

Rest = Literal["masked", "pseudo"]
"""Treatment of the problems without a label."""
Worth = Literal["mixed", "gap"]
"""Value of a label: whether the group has a gradient by it, or the gap to the majority's advantages (cag.py)."""
WORTHS: dict[Rest, Worth] = {"masked": "mixed", "pseudo": "gap"}
"""Value of a label by what happens to the problem without it."""
QuerySelection = Literal["probes", "random"]
"""Choice of the problems that CARE asks about."""
Pace = Literal["early", "even"]
"""Time at which a budget is spent."""


@dataclass(frozen=True)
class Acquired:
    """One step's problems, by their place in it.

    queries: to be asked about, most wanted first.
    trusted: trained on as voted.
    multipliers: what each problem's advantages count, if the queries are answered.
    """

    queries: tuple[int, ...]
    trusted: tuple[int, ...]
    multipliers: tuple[float, ...]


def quota(share: float, problems: int) -> int:
    """ceil(share * problems), where the product's rounding error does not count as one more.

    Raises:
        ValueError: a share that is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {share}")
    return math.ceil(share * problems - 1e-9)


@dataclass(frozen=True)
class Spending:
    """Number of problems that each step of a client may ask about.

    share: share of the distinct problems of the run that may have a label. pace: `early` asks for this share of each
    step's problems, so that the budget is spent within the first pass over the problems; `even` spreads the labels
    evenly over the run's steps. problems: distinct problems that the client draws in the run; steps: its local steps in
    the run; both are read where the pace is even. What bounds the sum is the ledger's room.
    """

    share: float
    pace: Pace = "early"
    problems: int = 0
    steps: int = 1

    @property
    def labels(self) -> int:
        """Labels of the whole run: ceil(share * problems)."""
        return quota(self.share, self.problems)

    def queries(self, step: int, drawn: int) -> int:
        """Number of the `drawn` problems that may be asked about in this step; steps count from 0.

        Raises:
            ValueError: a share that is not from 0 to 1.
        """
        if self.pace == "early":
            return quota(self.share, drawn)
        before, after = (self.labels * min(done, self.steps) // self.steps for done in (step, step + 1))
        return after - before


def care(
    reliable: Sequence[float],
    scores: Sequence[float],
    *,
    queries: int,
    steps_done: int,
    of: int | None = None,
    trusted_share: float = TRUSTED_SHARE,
    vote_free_steps: int = 0,
    min_reliability: float = 0.0,
) -> Acquired:
    """Select the problems to ask about and to trust, by CARE's rule.

    reliable, scores: P1 and S of each problem; drawn numbers in the place of S are queries by chance.
    queries: how many may be asked about, `quota(budget, problems)` or what a total budget has left.
    steps_done: steps taken before this one. of: problems of the whole step, if those given are not all of it: the
        share to trust is of these. vote_free_steps: steps at the start of a run without trust in votes.
        min_reliability: no problem of a smaller P1 is trusted; 0 is the authors' rule.

    Raises:
        ValueError: not as many P1 as S, one that is not finite, or a negative number of queries.
    """
    if len(reliable) != len(scores):
        raise ValueError(f"{len(reliable)} reliabilities and {len(scores)} scores")
    order = _ranked(scores, queries)
    most_reliable = _ranked(reliable, queries)
    share = quota(trusted_share, len(reliable) if of is None else of)
    trusted = [problem for problem in most_reliable[:share] if reliable[problem] >= min_reliability]
    trusted = trusted if steps_done >= vote_free_steps else []
    wanted = [problem for problem in order if problem not in trusted] + sorted(trusted)
    asked = wanted[:queries]
    trusted = [problem for problem in trusted if problem not in asked]
    return acquired(asked, trusted, len(scores))


def acquired(asked: Sequence[int], trusted: Sequence[int], problems: int) -> Acquired:
    """Count what is asked about or trusted in full, and mask the rest of `problems`."""
    counted = {*asked, *trusted}
    return Acquired(tuple(asked), tuple(trusted), tuple(float(problem in counted) for problem in range(problems)))


def by_chance(
    reliable: Sequence[float | None],
    rng: Random,
    *,
    queries: int,
    share: float,
    of: int,
    least: float,
    from_: float = math.inf,
) -> Acquired:
    """Draw the problems to ask about, and trust the most reliable votes among the others.

    reliable: of each problem; None where the vote cannot be trusted. share: of the `of` problems of the whole step, the
        number of votes to trust at most, those above `least` with the largest values. from_: votes from this value on
        are trusted beyond that number.
    """
    chance = [rng.random() for _ in reliable]
    order = sorted(range(len(chance)), key=lambda problem: -chance[problem])
    asked = order[:queries]
    known = {problem: value for problem in order[queries:] if (value := reliable[problem]) is not None}
    above = sorted((problem for problem in known if known[problem] > least), key=lambda p: (-known[p], p))
    trusted = sorted({*above[: quota(share, of)], *(problem for problem in known if known[problem] >= from_)})
    return acquired(asked, trusted, len(chance))


def highest(values: Sequence[float], *, queries: int, rest: Rest) -> Acquired:
    """Ask about the largest values: `answer_entropy`, minus `mean_probability`, `true_worth`, or drawn numbers.

    As many queries as problems are all labels; none are majority-only training if the rest is pseudo-labelled.

    Raises:
        ValueError: a value that is not finite, a negative number of queries, or an unknown fate of the rest.
    """
    if rest not in get_args(Rest):
        raise ValueError(f"the rest is {' or '.join(get_args(Rest))}, not {rest!r}")
    asked = _ranked(values, queries)[:queries]
    others = () if rest == "masked" else tuple(sorted(set(range(len(values))) - set(asked)))
    return acquired(asked, others, len(values))


def answer_entropy(votes: Clusters) -> float:
    """Entropy of the clusters, in nats, among the answers that could be read; 0 if none could."""
    return -math.fsum(size / votes.valid * math.log(size / votes.valid) for size in votes.sizes)


def mean_probability(logps: Sequence[Sequence[float]]) -> float:
    """The mean over responses of their tokens' mean probability, from behaviour log-probs.

    Raises:
        ValueError: no responses, or one without tokens.
    """
    if not logps or not all(logps):
        raise ValueError("a group has responses, and a response has tokens")
    return math.fsum(math.fsum(map(math.exp, tokens)) / len(tokens) for tokens in logps) / len(logps)


def true_worth(votes: Clusters, true_rewards: Sequence[float], worth: Worth) -> float:
    """The value of a label itself, which takes the answer to know.

    gap: the gap to the majority's advantages, 0 where the majority is right. mixed: the gap to no advantages, which is
    sqrt(G) where the rewards differ and 0 where all are equal.

    Raises:
        ValueError: as `corrective_advantage_gap`.
    """
    if worth == "mixed":
        return corrective_advantage_gap(true_rewards, [0.0] * len(votes.members))
    right, _ = votes.judged(true_rewards)
    return 0.0 if right else corrective_advantage_gap(true_rewards, votes.pseudo_rewards)


def _ranked(values: Sequence[float], queries: int) -> list[int]:
    if queries < 0:
        raise ValueError(f"{queries} queries")
    if not all(map(math.isfinite, values)):
        raise ValueError("values to rank by must be finite")
    return sorted(range(len(values)), key=lambda problem: -values[problem])

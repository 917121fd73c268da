"""Release of the results of a message: floors, numbers over enough problems, and their rounding.

Every reply passes through `SiteRelease` before it is packed. The rules, with n the number of different private problems
that a number is about:

    n below limits.least_scored            the number stays here; small sources of an evaluation are pooled
    rewards, shares, scores                rounded to a multiple of share_step(n), up or down at random
    trained tokens, losses, norms          the same, relative to their size: which problems had a gradient follows from
                                           them for whoever can compute what each label would give
    sampled tokens, lengths, redrawn       so too where problems are drawn again (train.dynamic_sampling)
    lengths, sampled tokens, seconds, ...  rounded to two significant digits
    the share of a mixed adapter           stays here: it is an exact comparison of two counts of right responses
    numbers of problems and of labels      as they are

Under differential privacy no number leaves at all, and a missed floor does not show.

A number that is rounded to the nearest multiple would tell for certain when it crosses the middle of two, which a
server could aim at; so the remainder is the probability of rounding up, drawn from the organisation's secret.

The largest ratio of a token is one problem's number, so it never leaves; a mean that is taken over the last step alone
is about the problems of that step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.client.request import ClientRequest, Release
from fedrlvr.client.state import Memory
from fedrlvr.config.problems import is_reward_mean
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.counts import AnsweredCounts
from fedrlvr.errors import FloorError, LimitError
from fedrlvr.seeds import stream
from fedrlvr.wire.messages import (
    BINS,
    METRICS,
    PROBES,
    RespondRequest,
    SourceScores,
    StretchRequest,
    record_in,
)
from fedrlvr.wire.public_messages import EXCHANGE, SHARE

POOLED = "other sources"
"""Name under which the scores of small sources leave together."""
SHARES = {"reward", "pass@1", "verified_reward", "zero_variance_groups", "unfinished", "unreadable", "clip_fraction"}
SHARES |= {"majority_right", "probe_auc", "share_query", "share_known", "share_reliable", "share_masked"}
SHARES |= {"audit_majority_right", "audit_reliable_right", "own_correct", "foreign_clip_fraction"}
"""Numbers that are means of values between 0 and 1, or of rewards, besides those of several rewards."""
OF_LABELS = {"tokens_trained", "loss", "grad_norm", "reliability_loss", "response_loss", "correction_loss"}
"""Names of the numbers of any size that depend on which responses were right."""
REDRAWN = {"problems_redrawn", "tokens_sampled", "response_length"}
"""Names of the numbers that depend on which responses were right where problems are drawn again for that."""
EXACT = {"num-examples", "labels_asked", "labels_used", "labels_total", "swapped_in", "rescued", "refused"}
"""Names of the counts that leave exactly. Those of swaps are about responses that have left already."""
CHOICE = "global_share"
"""Name of the share that a client chose by its validation problems. A server that shapes both adapters could learn from
it of a single problem, which no rounding of so few values hides."""
PROBE_LOSSES = ("reliability_loss", "response_loss", "correction_loss")


def share_step(n: int) -> float:
    """The smallest of ..., 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, ... that is not below 0.5 / sqrt(n).

    0.5 / sqrt(n) is the largest standard deviation of a share of n problems: finer digits describe the problems that
    were drawn, not the policy.
    """
    least = 0.5 / math.sqrt(n)
    power = 10.0 ** math.floor(math.log10(least))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least * (1 - 1e-9))


def rounded_share(value: float, n: int, chance: float = 0.5) -> float:
    """A share, or mean reward, of n problems to a multiple of its step; the step grows with rewards beyond 1.

    chance: uniform in [0, 1). The value is rounded up if its remainder, as a share of the step, is above 1 - chance.
    """
    if not math.isfinite(value):
        return value
    step = share_step(n) * max(1.0, _power(value))
    if 0 <= value <= 1:  # at the very ends rounding would be certain: none right, or one
        value = min(max(value, step / 2), 1 - step / 2)
    return _to_multiple(value, step, chance)


def rounded_to_size(value: float, n: int, chance: float = 0.5) -> float:
    """A number about n problems to a multiple of its step relative to the next power of ten; a whole number stays one.

    chance: as for `rounded_share`.
    """
    return type(value)(_to_multiple(value, share_step(n) * _power(value), chance)) if math.isfinite(value) else value


def _power(value: float) -> float:
    """The smallest power of ten that is not below |value|."""
    return 10.0 ** math.ceil(math.log10(abs(value))) if value else 1.0


def _to_multiple(value: float, step: float, chance: float) -> float:
    return float(f"{math.floor(value / step + chance + 1e-9) * step:.12g}")


def two_digits(value: float) -> float:
    """A number to two significant digits; a whole number stays one."""
    return type(value)(float(f"{value:.2g}")) if math.isfinite(value) else value


def rounded_scores(scores: SourceScores, chance: float = 0.5) -> SourceScores:
    """Scores whose mean pass rate and mean square are rounded, and still those of some pass rates."""
    n = scores.n
    mean = min(rounded_share(scores.total / n, n, chance), 1.0)
    square = min(max(rounded_share(scores.squares / n, n, chance), mean * mean), mean)
    return SourceScores(source=scores.source, n=n, total=mean * n, squares=square * n)


def pooled(scores: Sequence[SourceScores], least: int, whole: str) -> list[SourceScores]:
    """Scores with every source of fewer than `least` problems pooled.

    Where the pool is too small itself all sources are summed under the name `whole`, since a number left out could be
    had by subtraction; where these are too few nothing is left.
    """
    large = [source for source in scores if source.n >= least]
    small = [source for source in scores if source.n < least]
    if not small:
        return large
    pool = _sum(small, POOLED)
    if pool.n < least:
        large, pool = [], _sum(scores, whole)
    return [*large, pool] if pool.n >= least else []


def _sum(scores: Sequence[SourceScores], name: str) -> SourceScores:
    return SourceScores(
        source=name,
        n=sum(source.n for source in scores),
        total=sum(source.total for source in scores),
        squares=sum(source.squares for source in scores),
    )


class SiteRelease(Release):
    """The rules of an organisation's [limits].

    task: the name under which all sources are summed. counts: remember which model each request began with.
    """

    def __init__(self, limits: Limits, task: str, counts: AnsweredCounts | None = None) -> None:
        super().__init__(scale_free=limits.scale_free)
        self.limits, self.task, self.counts = limits, task, counts
        self.memory: Memory | None = None
        """Memory of the round that the last reply is about; None before one, and for evaluations."""
        self.noise_alone = ""
        """The floor that the last adapter with noise has missed, so that noise alone left; "" if none."""

    def accept(self, request: ClientRequest, adapter: Adapter, change: Adapter | None) -> str:
        """Check the sizes of the factors that a message begins with.

        The first message with a request draws what a simulation would. Another message with the same request draws
        the same only if everything else in it is the same too: else the digest of the rest names its streams.

        Raises:
            LimitError: a number or a layer's update is too large; the text names layer and limit.
        """
        limits = self.limits
        for what, part in (("adapter", adapter), ("change of the base weights", change)):
            for name, factors in part.layers.items() if part is not None else ():
                largest = max(float(factor.abs().max()) for factor in factors)
                size = part.scale * math.prod(float(factor.norm()) for factor in factors)  # type: ignore[union-attr]
                for setting, value, most in (
                    ("factor_value", largest, limits.factor_value),
                    ("update_norm", size, limits.update_norm),
                ):
                    if not value <= most:
                        raise LimitError(
                            f"{request.place}: the {what} that was sent has {value:.3g} in the layer {name}, and at "
                            f"most {most:g} is allowed (limits.{setting})"
                        )

        if self.counts is None or not request.data.secret:
            return ""
        digest = hashlib.blake2b(digest_size=16)
        for part in (adapter, change):
            for _, tensor in part.tensors() if part is not None else ():
                digest.update(tensor.contiguous().numpy().data)
        for name in (SHARE, PROBES):
            if (arrays := record_in(request.message.content, name, ArrayRecord)) is not None:
                for array in arrays.values():
                    digest.update(array.data)
        asked = request.data.name + request.asked.model_dump_json()
        rest, first = digest.hexdigest(), hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
        return "" if self.counts.first(first, rest) == rest else rest

    def trained(self, request: ClientRequest, memory: Memory, reply: RecordDict) -> RecordDict:
        """The reply with only the numbers that may leave, rounded.

        Raises:
            FloorError: too little private training is behind the reply; the text names the floor and no count.
        """
        asked, self.memory = request.asked, memory
        assert isinstance(asked, StretchRequest)
        if asked.privacy is not None:  # floors have been looked at, and a reply that stays away would tell about data
            return super().trained(request, memory, reply)
        # A policy that has taken no local steps in this round is the server's own, with public steps at most.
        if memory.influence or not isinstance(asked, RespondRequest):
            self._check_floors(request, memory, reply)
        if (record := record_in(reply, METRICS, MetricRecord)) is not None:
            reply[METRICS] = MetricRecord(
                self._numbers(
                    record,
                    _counts(asked, memory, len(request.data.validation)),
                    _Chances(request),
                    OF_LABELS | REDRAWN if asked.train.dynamic_sampling else OF_LABELS,
                )
            )
        if (record := record_in(reply, EXCHANGE, MetricRecord)) is not None and self.limits.round_numbers:
            public = asked.coordination.public_problems if asked.coordination else 1
            chances = _Chances(request)
            rounded = {name: _rounded(name, value, public, chances(name)) for name, value in record.items()}
            reply[EXCHANGE] = MetricRecord(rounded)
        return reply

    def noised(
        self, request: ClientRequest, memory: Memory, adapter: Adapter, start: Adapter, halves: Halves
    ) -> Adapter:
        """The adapter with the noise that is asked for; noise alone, which looks the same, where a floor is missed."""
        assert isinstance(request.asked, StretchRequest)
        if request.asked.privacy is not None:
            try:
                self._check_floors(request, memory, RecordDict())
            except FloorError as error:
                self.noise_alone, adapter = str(error), start
        return super().noised(request, memory, adapter, start, halves)

    def scores(self, request: ClientRequest, scores: list[SourceScores]) -> list[SourceScores]:
        """Scores of enough problems each, rounded; none under a budget of epsilon."""
        if self.limits.epsilon is not None and not self.limits.unnoised_scores:
            return []
        kept, chances = pooled(scores, self.limits.least_scored, self.task), _Chances(request)
        if not self.limits.round_numbers:
            return kept
        return [rounded_scores(source, chances(source.source)) for source in kept]

    def _check_floors(self, request: ClientRequest, memory: Memory, reply: RecordDict) -> None:
        limits, influence = self.limits, memory.influence.values()
        total = sum(influence)
        labelled = memory.labels.total if memory.labels is not None else 0
        floors = {
            "least_problems": len(influence) >= limits.least_problems
            and (PROBES not in reply or labelled >= limits.least_problems),
            "least_learned": sum(part > 0 for part in influence) >= limits.least_learned,
            "least_tokens": memory.tokens >= limits.least_tokens,
            "least_positions": memory.positions >= limits.least_positions * _widest_input(request.client.initial),
            "largest_ratio": not memory.metrics.ratio_max > limits.largest_ratio,  # nan: no token was trained
            "problem_share": max(influence, default=0.0) <= limits.problem_share * total,
        }
        if missed := [f"limits.{name} = {getattr(limits, name)}" for name, kept in floors.items() if not kept]:
            raise FloorError(
                f"{request.place}: too little was trained on in this round for anything to leave ({', '.join(missed)})"
                ". More train.local_steps or train.problems_per_step put more behind a reply."
            )

    def _numbers(
        self, record: MetricRecord, counts: Mapping[str, int], chances: _Chances, of_labels: AbstractSet[str]
    ) -> dict[str, Any]:
        """The numbers over enough problems. counts: problems by number, under "" for all others. of_labels: as
        OF_LABELS."""
        least, numbers = self.limits.least_scored, dict(record)
        for prefix in ("p1", "audit_p1"):
            bins = _bins(prefix, numbers, least, chances if self.limits.round_numbers else None)
            if bins and not any(bins[f"{prefix}_n"]):  # all three leave or none: the server refuses a part of them
                for name in bins:
                    del numbers[name]
            else:
                numbers |= bins
        for name, value in list(numbers.items()):
            n = counts.get(name, counts[""])
            if isinstance(value, list):
                continue
            if (name not in EXACT and n < least) or (name == CHOICE and self.limits.round_numbers):
                del numbers[name]
            elif self.limits.round_numbers:
                numbers[name] = _rounded(name, value, n, chances(name), of_labels)
        return numbers


class _Chances:
    """The chances that decide how the numbers of a reply are rounded, by name; the same for the same message."""

    def __init__(self, request: ClientRequest) -> None:
        self._seed = request.seed

    def __call__(self, name: str) -> float:
        return stream(self._seed, "rounding", name) / 2.0**63


def _widest_input(adapter: Adapter) -> int:
    return max(k for _, k in adapter.shapes.values())


def _counts(asked: StretchRequest, memory: Memory, validation: int) -> dict[str, int]:
    """Different private problems behind each number of a train reply. validation: problems of this split."""
    drawn = len(memory.influence)
    counts = {"": drawn, "ratio_max": 1, "kl_to_base": min(drawn, asked.train.problems_per_step)}
    counts[CHOICE] = validation
    if (labels := memory.labels) is not None:
        counts |= dict.fromkeys(("verified_reward", "majority_right"), min(labels.used, labels.total))
        counts |= dict.fromkeys(PROBE_LOSSES, labels.total)
        counts["audit_reliable_right"] = min(drawn, labels.means.weights.get("audit_reliable_right", 0))
    return counts


def _rounded(name: str, value: Any, n: int, chance: float, of_labels: AbstractSet[str] = OF_LABELS) -> Any:
    if name in EXACT or isinstance(value, list):
        return value
    if name in SHARES or is_reward_mean(name):
        return rounded_share(value, n, chance)
    return rounded_to_size(value, n, chance) if name in of_labels else two_digits(value)


def _bins(prefix: str, numbers: Mapping[str, Any], least: int, chances: _Chances | None) -> dict[str, list[Any]]:
    """A calibration without its bins of fewer than `least` problems. chances: None rounds nothing."""
    if f"{prefix}_n" not in numbers:
        return {}
    n, total, right = (list(numbers[f"{prefix}_{column}"]) for column in ("n", "sum", "right"))
    for i in range(BINS):
        if n[i] < least:
            n[i], total[i], right[i] = 0, 0.0, 0
        elif chances is not None:
            shares = [
                rounded_share(c[i] / n[i], n[i], chances(f"{prefix} {i} {k}")) for k, c in enumerate((total, right))
            ]
            total[i], right[i] = n[i] * min(shares[0], 1.0), min(round(n[i] * shares[1]), n[i])
    return {f"{prefix}_n": n, f"{prefix}_sum": total, f"{prefix}_right": right}

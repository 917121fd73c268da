"""The course of a run in plain sentences: the first paragraph of the report.

A rule looks at the run's history and gives a sentence, or nothing. Rules go by the lines of metrics.jsonl and the
verdict alone, and state no cause: that is what advice is for (advice.py). The thresholds are our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedrlvr.reporting import units
from fedrlvr.reporting.advice import RECENT, RoundMeans, round_means, trained_nothing
from fedrlvr.reporting.scores import (
    Comparison,
    Estimate,
    Scores,
    difference,
    evaluations,
    label_lines,
    natural,
    summarise,
    totals,
)
from fedrlvr.reporting.verdict import Verdict

ENOUGH_EVALUATIONS = 5
"""Number of evaluated rounds from which on a curve can be said to have stalled."""
MOST_OF_IT = 0.9
"""Share of the whole gain that counts as nearly all of it."""
REWARD_CHANGE = 0.05
"""Change of the mean training reward that is worth a sentence."""
LENGTH_FACTOR = 1.5
"""Factor by which the length of responses must change to be worth a sentence."""
OFTEN_CUT = 0.2
"""Share of responses cut at the length limit that is worth a sentence."""
FEW_LEARNED = 0.8
"""Share of groups with equal rewards from which on few problems teach anything."""
_MOST_NAMED = 4


@dataclass(frozen=True)
class History:
    """The history of a run. records: the lines of metrics.jsonl. planned: train.rounds. gains: the verdict, if any."""

    records: Sequence[Mapping[str, Any]]
    planned: int
    gains: Verdict | None = None

    @cached_property
    def rounds(self) -> list[RoundMeans]:
        """Rounds in which a client trained."""
        means = [round_means(record) for record in self.records]
        return [part for part in means if part.round and part.accepted]

    @cached_property
    def scores(self) -> Scores | None:
        """Pass@1 before and after; None without an evaluation."""
        return summarise(self.records)

    @cached_property
    def evaluated(self) -> list[tuple[int, Estimate]]:
        """Held-out pass@1 of each evaluated round, in order."""
        return [(round_, overall) for round_, (overall, _) in sorted(evaluations(self.records).items())]

    @property
    def last(self) -> int:
        """The number of the last round."""
        return max((int(record["round"]) for record in self.records), default=0)

    @property
    def change(self) -> Estimate | None:
        """Held-out pass@1 after training minus before it."""
        return self.scores.overall.change if self.scores else None

    def ends(self, name: str) -> tuple[float, float] | None:
        """A number's mean over the first and over the last `RECENT` rounds; None where there are fewer than two of
        each."""
        values = [value for part in self.rounds if (value := getattr(part, name)) is not None]
        if len(values) < 2 * RECENT:
            return None
        return sum(values[:RECENT]) / RECENT, sum(values[-RECENT:]) / RECENT


def _nothing_trained(run: History) -> str | None:
    if run.last and trained_nothing(run.records):
        return "Nothing was trained: no optimizer step had a gradient, so the adapter is still the one of the start."
    return None


def _unfinished(run: History) -> str | None:
    if run.last < run.planned:
        return f"The run has done {units.count(run.last)} of its {units.count(run.planned)} rounds."
    return None


def _not_measured(run: History) -> str | None:
    if run.change is None:
        return "Held-out pass@1 was not measured before and after training, so nothing is known of what was learnt."
    return None


def _interval(change: Estimate) -> str:
    return (
        f"{units.signed(change.mean)} points, 95 % interval {units.signed(change.low)} to {units.signed(change.high)}"
    )


def _from_to(run: History) -> str:
    assert run.scores is not None
    overall = run.scores.overall
    assert overall.before is not None
    assert overall.after is not None
    return f"from {units.percent(overall.before.mean)} before training to {units.percent(overall.after.mean)} after it"


def _rose(run: History) -> str | None:
    if run.change is None or run.change.low <= 0:
        return None
    return f"Held-out pass@1 rose {_from_to(run)} ({_interval(run.change)})."


def _fell(run: History) -> str | None:
    if run.change is None or run.change.high >= 0:
        return None
    return f"Held-out pass@1 fell {_from_to(run)} ({_interval(run.change)}): the run made the model worse."


def _unchanged(run: History) -> str | None:
    if run.change is None or run.change.low > 0 or run.change.high < 0:
        return None
    return f"Held-out pass@1 did not clearly change: it went {_from_to(run)} ({_interval(run.change)})."


def _stalled(run: History) -> str | None:
    """Nearly all of the gain was there after the first half of the rounds."""
    if len(run.evaluated) < ENOUGH_EVALUATIONS or _rose(run) is None:
        return None
    first, last = run.evaluated[0][1].mean, run.evaluated[-1][1].mean
    reached = next(round_ for round_, score in run.evaluated if score.mean - first >= MOST_OF_IT * (last - first))
    if reached > run.last / 2:
        return None
    since = run.last - reached
    return f"Then it stalled: nearly all of the gain was there after round {reached}; {since} more rounds added little."


def _best(run: History) -> tuple[int, Estimate, Estimate, Estimate] | None:
    """Best round and its score, with those of the first and the last evaluation, where the last is clearly worse."""
    if len(run.evaluated) < 3:
        return None
    round_, best = max(run.evaluated[1:-1], key=lambda pair: pair[1].mean)
    first, last = run.evaluated[0][1], run.evaluated[-1][1]
    return (round_, best, first, last) if difference(last, best).high < 0 else None


def _collapsed(run: History) -> str | None:
    """Half of what was gained at best, or more, is lost again."""
    peak = _best(run)
    if peak is None:
        return None
    round_, best, first, last = peak
    if best.mean <= first.mean or last.mean > (best.mean + first.mean) / 2:
        return None
    return (
        f"The run collapsed: held-out pass@1 was {units.percent(best.mean)} after round {round_} and is "
        f"{units.percent(last.mean)} at the end."
    )


def _past_its_best(run: History) -> str | None:
    peak = _best(run)
    if peak is None or _collapsed(run) is not None:
        return None
    round_, best, first, last = peak
    if best.mean <= first.mean:
        return None
    return (
        f"The last adapter is not the best: held-out pass@1 was {units.percent(best.mean)} after round {round_} and is "
        f"{units.percent(last.mean)} at the end."
    )


def _reward(run: History) -> str | None:
    ends = run.ends("reward")
    if ends is None or abs(ends[1] - ends[0]) < REWARD_CHANGE:
        return None
    word = "rose" if ends[1] > ends[0] else "fell"
    return f"The mean reward in training {word} from {ends[0]:.2f} in the first rounds to {ends[1]:.2f} in the last."


def _reward_alone(run: History) -> str | None:
    ends = run.ends("reward")
    if ends is None or ends[1] - ends[0] < REWARD_CHANGE or run.change is None or run.change.low > 0:
        return None
    return "The held-out problems do not confirm the rise of the training reward."


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    if more > 0:
        return f"{', '.join(names[:_MOST_NAMED])} and {more} more"
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _clients(run: History, chosen: Callable[[Estimate], bool]) -> list[Comparison]:
    lines = run.scores.clients if run.scores else []
    return [line for line in lines if line.change is not None and chosen(line.change)]


def _gained(run: History) -> str | None:
    return _moved(run, "gained", lambda change: change.low > 0)


def _lost(run: History) -> str | None:
    return _moved(run, "lost", lambda change: change.high < 0)


def _moved(run: History, word: str, chosen: Callable[[Estimate], bool]) -> str | None:
    """A sentence on the clients that moved beyond their interval; with a single client the first sentence says it."""
    lines = _clients(run, chosen)
    if not lines or run.scores is None or len(run.scores.clients) < 2:
        return None
    return (
        f"On its own held-out problems, {len(lines)} of {len(run.scores.clients)} clients {word} beyond the 95 % "
        f"interval: {_names([str(line.client) for line in lines])}."
    )


def _better_than_alone(run: History) -> str | None:
    return _against_alone(run, "better")


def _worse_than_alone(run: History) -> str | None:
    return _against_alone(run, "worse")


def _against_alone(run: History, word: str) -> str | None:
    names = [line.client for line in run.gains.clients if line.word == word] if run.gains else []
    if not names:
        return None
    verb = "is" if len(names) == 1 else "are"
    return f"Compared with training alone, {_names(names)} {verb} {word} off with the federation."


def _no_one_clear(run: History) -> str | None:
    if run.gains is None or any(line.word in ("better", "worse") for line in run.gains.clients):
        return None
    return "Compared with training alone, no client is clearly better or worse off with the federation."


def _length(run: History) -> str | None:
    ends = run.ends("length")
    if ends is None or not ends[0] or not ends[1] or 1 / LENGTH_FACTOR < ends[1] / ends[0] < LENGTH_FACTOR:
        return None
    word = "grew" if ends[1] > ends[0] else "shrank"
    return f"Responses {word} from {ends[0]:.0f} to {ends[1]:.0f} tokens on average."


def _cut(run: History) -> str | None:
    recent = [part.cut for part in run.rounds[-RECENT:] if part.cut is not None]
    if not recent or (share := sum(recent) / len(recent)) < OFTEN_CUT:
        return None
    return f"In the last rounds {units.percent(share)} of the responses were cut at the length limit."


def _few_learned(run: History) -> str | None:
    recent = [part.same_rewards for part in run.rounds[-RECENT:] if part.same_rewards is not None]
    if not recent or (share := sum(recent) / len(recent)) < FEW_LEARNED or trained_nothing(run.records):
        return None
    return f"In the last rounds {units.percent(share)} of the groups had equal rewards and taught nothing."


def _left_out(run: History) -> str | None:
    times = Counter(client for record in run.records for client in record.get("left_out", {}))
    if not times:
        return None
    names = sorted(times, key=lambda client: (-times[client], natural(client)))
    listed = [f"{client} ({times[client]} of {units.count(run.last)} rounds)" for client in names]
    return f"Replies were missing or not used: {_names(listed)}."


def _labels(run: History) -> str | None:
    lines = label_lines(run.records)
    if not lines or not lines[-1].asked:
        return None
    return f"The clients asked for {units.count(lines[-1].asked)} labels."


def _cost(run: History) -> str | None:
    sums = totals(run.records)
    if not run.last:
        return None
    travelled = sum(sums.bytes_up.values()) + sum(sums.bytes_down.values())
    clients, rounds = len(sums.bytes_up), units.count(run.last)
    return (
        f"{units.count(clients)} {'client' if clients == 1 else 'clients'} in {rounds} "
        f"{'round' if run.last == 1 else 'rounds'} sampled {units.count(sums.tokens_sampled)} tokens, exchanged "
        f"{units.size(travelled)} and took {units.duration(sum(sums.wall.values()))}."
    )


Telling = Callable[[History], str | None]


def _noise(run: History) -> str | None:
    loss = next((record["privacy"] for record in reversed(run.records) if record.get("privacy")), None)
    if loss is None:
        return None
    return (
        f"Adapters left the clients with noise: ({loss['epsilon']:.3g}, {loss['delta']:g})-differential privacy for "
        "all training problems of a client that trained in every round; rewards and other numbers stayed there."
    )


STORY: dict[str, Telling] = {
    "unfinished": _unfinished,
    "nothing trained": _nothing_trained,
    "not measured": _not_measured,
    "rose": _rose,
    "fell": _fell,
    "unchanged": _unchanged,
    "stalled": _stalled,
    "collapsed": _collapsed,
    "past its best": _past_its_best,
    "reward": _reward,
    "reward alone": _reward_alone,
    "gained": _gained,
    "lost": _lost,
    "better than alone": _better_than_alone,
    "worse than alone": _worse_than_alone,
    "like alone": _no_one_clear,
    "length": _length,
    "cut": _cut,
    "few learned": _few_learned,
    "left out": _left_out,
    "labels": _labels,
    "noise": _noise,
    "cost": _cost,
}
"""All rules, in the order of the paragraph."""


def tell(run: History) -> dict[str, str]:
    """The sentences of all rules that hold for a run, by the rules' names."""
    return {name: sentence for name, rule in STORY.items() if (sentence := rule(run)) is not None}

"""Advice: what the numbers of a run's rounds say is wrong, and the setting to change.

A rule is a name, a condition on the rounds so far, and a sentence. Rules are functions of the lines of metrics.jsonl
and of nothing else, so the terminal, the log and the report agree. The thresholds are our own, set so that none of the
runs of this project's measurements that learnt is advised against.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedrlvr.output import logger
from fedrlvr.reporting import units
from fedrlvr.reporting.observer import Advised, Event, Observer, RoundSaved, RunStarted
from fedrlvr.reporting.scores import Estimate, difference, evaluations

_log = logger("reporting")

ENOUGH = 64
"""Number of responses from which on a rule about responses says anything."""
NEARLY_ALL = 0.95
"""Share of groups or responses that counts as nearly all of them."""
RECENT = 2
"""Number of newest rounds whose responses a rule looks at together."""
TREND = 4
"""Number of newest rounds in which a number must have risen all the time for it to run away."""
STILL = 1e-6
"""KL per token below which a policy counts as the base model's, after `STILL_ROUNDS` rounds; noise is 1e-8."""
STILL_ROUNDS = 5
MORE = "`fedrlvr responses` shows responses."
PROMPTS = "compare prompts with `fedrlvr prompts` (prompt.instruction, prompt.chat, prompt.shots)"


@dataclass(frozen=True)
class RoundMeans:
    """Means over the clients of one round that advice goes by; None where no client has told the number.

    accepted: clients whose training was used. responses: sampled on private problems. largest_reward: of the clients'
    mean rewards, by absolute value. same_rewards: share of groups without a gradient. cut, unreadable, masked: shares
    of responses cut at the length limit, of responses without a readable answer, of problems not trained on. kl: to the
    base model, per token. length: of a response, in tokens. gradient: whether any optimizer step had one, as far as is
    known. held_out: pass@1.
    """

    round: int
    accepted: int = 0
    responses: float = 0.0
    reward: float | None = None
    largest_reward: float | None = None
    same_rewards: float | None = None
    cut: float | None = None
    unreadable: float | None = None
    masked: float | None = None
    kl: float | None = None
    length: float | None = None
    gradient: bool = True
    held_out: Estimate | None = None


_GRADIENT = {"grad_norm": None, "tokens_trained": None, "public_tokens_trained": 0}
"""Numbers of which one is not 0 where a step had a gradient, and what a missing one counts as; 0 is no gradient."""
Rounds = Sequence[RoundMeans]
"""The rounds of a run so far, in order."""


def round_means(record: Mapping[str, Any]) -> RoundMeans:
    """The means of one line of metrics.jsonl."""
    counts_of_a_reply = ("num-examples", "tokens_sampled")  # of every reply that was used
    clients = [
        numbers
        for numbers in record.get("clients", {}).values()
        if any(numbers.get(name) is not None for name in counts_of_a_reply)
    ]
    evaluated = [overall for overall, _ in evaluations([record]).values()]

    def mean(key: str) -> float | None:
        values = [float(numbers[key]) for numbers in clients if numbers.get(key) is not None]
        return sum(values) / len(values) if values else None

    rewards = [abs(numbers["reward"]) for numbers in clients if numbers.get("reward") is not None]
    counts = [(numbers.get("tokens_sampled") or 0, numbers.get("response_length") or 0) for numbers in clients]
    return RoundMeans(
        round=int(record["round"]),
        accepted=len(clients),
        responses=sum(tokens / length for tokens, length in counts if length),
        reward=mean("reward"),
        largest_reward=max(rewards, default=None),
        same_rewards=mean("zero_variance_groups"),
        cut=mean("unfinished"),
        unreadable=mean("unreadable"),
        masked=mean("share_masked"),
        kl=mean("kl_to_base"),
        length=mean("response_length"),
        gradient=any(numbers.get(name, unknown) != 0 for numbers in clients for name, unknown in _GRADIENT.items()),
        held_out=evaluated[0] if evaluated else None,
    )


def trained_nothing(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether no optimizer step of a run had a gradient, so that its adapter is the one that it started from.

    A run without a training round has trained nothing either. A number that no client has told counts as a gradient.
    """
    return not any(round_means(record).gradient for record in records if record["round"])


def _trained(rounds: Rounds) -> Rounds:
    return [means for means in rounds if means.round and means.accepted]


def _recent(rounds: Rounds) -> Rounds:
    return _trained(rounds)[-RECENT:]


def _enough(rounds: Rounds) -> bool:
    return sum(means.responses for means in rounds) >= ENOUGH


def _mean(rounds: Rounds, name: str) -> float | None:
    """The mean of a number over rounds, by their responses."""
    pairs = [(getattr(means, name), means.responses) for means in rounds if getattr(means, name) is not None]
    weight = sum(responses for _, responses in pairs)
    return sum(value * responses for value, responses in pairs) / weight if weight else None


def _is(rounds: Rounds, name: str, least: float) -> bool:
    value = _mean(rounds, name)
    return value is not None and value >= least


def _span(rounds: Rounds) -> str:
    first, last = rounds[0].round, rounds[-1].round
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def _no_reward(rounds: Rounds) -> bool:
    recent = _recent(rounds)
    return _enough(recent) and all(means.largest_reward == 0 for means in recent)


def _no_reward_sentence(rounds: Rounds) -> str:
    recent = _recent(rounds)
    cut, unreadable = _mean(recent, "cut"), _mean(recent, "unreadable")
    known = ", ".join(
        f"{units.percent(share)} {what}"
        for share, what in ((cut, "cut at the length limit"), (unreadable, "without a readable answer"))
        if share is not None
    )
    if any(means.largest_reward for means in _trained(rounds)):
        cause = "Earlier rewards were above 0, so the policy has broken down: lower train.learning_rate"
    elif cut is not None and cut >= 0.5:
        cause = f"Most responses are cut before they answer: {PROMPTS}, or raise sampling.max_new_tokens"
    elif unreadable is None:
        cause = "The functions that data.rewards names give 0 to every response: check it with `fedrlvr validate`"
    elif unreadable >= 0.5:
        cause = (
            f"Most responses do not mark their answer as the grader reads it: {PROMPTS}, or take a larger model "
            "(model.name)"
        )
    else:
        cause = (
            f"Answers are read and all are wrong: {PROMPTS}, train on given responses first (`fedrlvr sft`), take "
            "easier problems or a larger model (model.name), and check the gold answers with `fedrlvr validate`"
        )
    return (
        f"Every reward of {_span(recent)} is 0, so nothing is learnt{f' (responses: {known})' if known else ''}. "
        f"{cause}. {MORE}"
    )


def _no_variance(rounds: Rounds) -> bool:
    recent = _recent(rounds)
    return _enough(recent) and not _no_reward(rounds) and _is(recent, "same_rewards", NEARLY_ALL)


def _no_variance_sentence(rounds: Rounds) -> str:
    recent = _recent(rounds)
    reward = _mean(recent, "reward")
    if reward is not None and reward >= 0.9:
        cause = f"The problems are too easy (mean reward {reward:.2f}): take harder ones (data.path, data.options)"
    elif reward is not None and reward <= 0.1:
        cause = (
            f"The problems are too hard for this model as they are asked (mean reward {reward:.2f}): {PROMPTS}, train "
            "on given responses first (`fedrlvr sft`), take easier problems (data.path, data.options), or raise "
            "sampling.group_size"
        )
    else:
        cause = "The responses to one problem are too much alike: raise sampling.temperature or sampling.group_size"
    share = units.percent(_mean(recent, "same_rewards"))
    return f"All rewards are equal within {share} of the groups of {_span(recent)}, which so have no gradient. {cause}."


def _cut(rounds: Rounds) -> bool:
    other = _no_reward(rounds) or _unreadable(rounds)
    return _enough(_recent(rounds)) and not other and _is(_recent(rounds), "cut", 0.8)


def _cut_sentence(rounds: Rounds) -> str:
    recent = _recent(rounds)
    return (
        f"The length limit cuts {units.percent(_mean(recent, 'cut'))} of the responses of {_span(recent)}. Raise "
        "sampling.max_new_tokens, or ask for shorter answers in prompt.instruction; train.unfinished says how "
        "responses that are cut are rewarded."
    )


def _unreadable(rounds: Rounds) -> bool:
    recent = _recent(rounds)
    other = _no_reward(rounds) or _no_variance(rounds)
    reward = _mean(recent, "reward")
    few = reward is not None and reward <= 0.05
    return _enough(recent) and few and _is(recent, "unreadable", 0.8) and not other


def _unreadable_sentence(rounds: Rounds) -> str:
    recent = _recent(rounds)
    return (
        f"The mean reward of {_span(recent)} is {_mean(recent, 'reward'):.3f}, so hardly anything is learnt: "
        f"{units.percent(_mean(recent, 'unreadable'))} of the responses have no answer that the grader can read"
        f"{_of_cut(recent)}. To find a prompt that is answered, {PROMPTS}. {MORE}"
    )


def _of_cut(rounds: Rounds) -> str:
    cut = _mean(rounds, "cut")
    return f", and {units.percent(cut)} are cut at the length limit" if cut is not None and cut >= 0.5 else ""


def _no_gradient(rounds: Rounds) -> bool:
    trained = _trained(rounds)
    other = _no_reward(rounds) or _no_variance(rounds)
    return len(trained) >= RECENT and not any(means.gradient for means in trained) and not other


def _no_gradient_sentence(rounds: Rounds) -> str:
    trained = _trained(rounds)
    cause = (
        "Every response was masked or had the mean reward of its group: see train.unfinished and sampling.group_size"
    )
    if _is(trained, "masked", 0.5):
        cause = (
            f"No label is there for {units.percent(_mean(trained, 'masked'))} of the problems, which are not trained "
            "on: raise supervision.budget, or give labels at the desk if supervision.labels_from asks people"
        )
    return f"No optimizer step of {_span(trained)} had a gradient, so the adapter has not changed. {cause}."


def _no_reply(rounds: Rounds) -> bool:
    return sum(means.round > 0 for means in rounds) >= RECENT and not _trained(rounds)


def _no_reply_sentence(rounds: Rounds) -> str:
    return (
        f"No client's reply was used in {_span([means for means in rounds if means.round])}, so the global adapter has "
        "not changed. The key left_out of metrics.jsonl has the reasons; where a floor withholds replies, "
        "train.local_steps or train.problems_per_step must be larger, or the problems such that their rewards differ."
    )


def _still(rounds: Rounds) -> bool:
    trained = _trained(rounds)
    kl = trained[-1].kl if trained else None
    moves = len(trained) < STILL_ROUNDS or kl is None or abs(kl) >= STILL
    return not moves and any(means.gradient for means in trained)


def _still_sentence(rounds: Rounds) -> str:
    last = _trained(rounds)[-1]
    return (
        f"The policy is still the base model's after {last.round} rounds (KL {last.kl:.1e} per token), although there "
        "were gradients. Raise train.learning_rate, or train.local_steps."
    )


def _runs_away(rounds: Rounds, name: str, factor: float, least: float) -> bool:
    """Whether a number has risen in each of the newest rounds, by a factor in all, without a gain in reward."""
    last = _trained(rounds)[-TREND:]
    values = [value for means in last if (value := getattr(means, name)) is not None]
    rewards = [means.reward for means in last if means.reward is not None]
    if not len(last) == len(values) == len(rewards) == TREND or not _enough(last):
        return False
    rises = all(after > before for before, after in pairwise(values))
    return rises and values[-1] >= max(factor * values[0], least) and rewards[-1] <= rewards[0]


def _from_to(rounds: Rounds, name: str, form: str) -> str:
    last = _trained(rounds)[-TREND:]
    values = [getattr(means, name) for means in (last[0], last[-1])]
    return f"from {values[0]:{form}} in round {last[0].round} to {values[1]:{form}} in round {last[-1].round}"


def _kl_sentence(rounds: Rounds) -> str:
    return (
        f"The KL to the base model runs away: it rose {_from_to(rounds, 'kl', '.2f')} per token, and the reward did "
        "not rise. Lower train.learning_rate, or set train.kl_beta (0.01, say)."
    )


def _length_sentence(rounds: Rounds) -> str:
    return (
        f"The length of responses runs away: it rose {_from_to(rounds, 'length', '.0f')} tokens, and the reward did "
        'not rise. Lower train.learning_rate, or set train.unfinished = "zero", which gives cut responses no reward.'
    )


def _best_and_last(rounds: Rounds) -> tuple[RoundMeans, RoundMeans, float, float] | None:
    """The best and the newest evaluated round, and the training rewards about then; None if one is missing."""
    evaluated = [means for means in rounds if means.held_out is not None]
    rewarded = [means for means in _trained(rounds) if means.reward is not None]
    if len(evaluated) < 2 or not rewarded:
        return None
    best = max(evaluated[:-1], key=lambda means: means.held_out.mean if means.held_out else 0.0)
    then = [means for means in rewarded if means.round <= max(best.round, rewarded[0].round)][-1]
    return best, evaluated[-1], float(then.reward or 0.0), float(rewarded[-1].reward or 0.0)


def _held_out_falls(rounds: Rounds) -> bool:
    pair = _best_and_last(rounds)
    if pair is None:
        return False
    best, last, before, after = pair
    assert best.held_out is not None
    assert last.held_out is not None
    return difference(last.held_out, best.held_out).high < 0 and after > before


def _held_out_sentence(rounds: Rounds) -> str:
    pair = _best_and_last(rounds)
    assert pair is not None
    best, last, before, after = pair
    shares = [units.percent(means.held_out.mean) for means in (best, last) if means.held_out]
    return (
        f"Held-out pass@1 fell from {shares[0]} in round {best.round} to {shares[-1]} in round {last.round}, while the "
        f"training reward rose from {before:.2f} to {after:.2f}: the reward does not measure what the held-out "
        "problems ask. Take labels in place of votes (supervision.type), check the grader with `fedrlvr validate`, "
        "lower train.learning_rate or aggregation.server_learning_rate, or end the run earlier "
        f"(train.rounds = {max(best.round, 1)})."
    )


@dataclass(frozen=True)
class Rule:
    """A rule of advice. holds: whether the rounds so far call for it. sentence: what it then says."""

    name: str
    holds: Callable[[Rounds], bool]
    sentence: Callable[[Rounds], str]


RULES = (
    Rule("no reward", _no_reward, _no_reward_sentence),
    Rule("no variance", _no_variance, _no_variance_sentence),
    Rule("answers unreadable", _unreadable, _unreadable_sentence),
    Rule("responses cut", _cut, _cut_sentence),
    Rule("no gradient", _no_gradient, _no_gradient_sentence),
    Rule("no reply used", _no_reply, _no_reply_sentence),
    Rule("adapter still", _still, _still_sentence),
    Rule("KL runs away", lambda rounds: _runs_away(rounds, "kl", 2.0, 1.0), _kl_sentence),
    Rule("length runs away", lambda rounds: _runs_away(rounds, "length", 1.5, 16.0), _length_sentence),
    Rule("held-out pass@1 falls", _held_out_falls, _held_out_sentence),
)
"""All rules, the most basic first."""


def advise(rounds: Rounds) -> dict[str, str]:
    """The sentences of all rules that hold after these rounds, by the rules' names."""
    return {rule.name: rule.sentence(rounds) for rule in RULES if rule.holds(rounds)}


class Adviser(Observer):
    """Gives each rule's advice once a run, when a round is saved: to an observer, and to the log.

    observer: shows the advice. Without one, as in `fedrlvr.run` of Python, the log's line is a warning.
    earlier: reads the records of the rounds before a run that is resumed; their advice was given then.
    """

    def __init__(self, observer: Observer, earlier: Callable[[Path], Sequence[Mapping[str, Any]]]) -> None:
        self.observer, self._earlier = observer, earlier
        self._level = logging.WARNING if type(observer) is Observer else logging.INFO
        self._rounds: list[RoundMeans] = []
        self._given: set[str] = set()

    def notify(self, event: Event) -> None:
        """Give what the saved rounds call for, and was not given yet."""
        match event:
            case RunStarted() if event.first_round:
                self._rounds = [round_means(record) for record in self._earlier(Path(event.directory))]
                self._given = set(advise(self._rounds))
            case RoundSaved():
                self._rounds.append(round_means(event.record))
                for name, sentence in advise(self._rounds).items():
                    if name not in self._given:
                        self._given.add(name)
                        _log.log(self._level, "advice: %s", sentence)
                        self.observer.notify(Advised(event.round, name, sentence))

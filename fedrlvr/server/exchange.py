"""An exchange at the server: it grades every response again, makes the pool, and deals each client its share.

What a client says of its responses is not looked at. A response is dropped, and counted by who sent it, if it is not
stamped as this exchange's, cannot be decoded, is longer than asked for, is one too many of its problem, or is there
twice. Only what the server's own grader calls correct enters the pool, and of that only what passes the screening.

A client whose reply is malformed is left out of this exchange by name, and trains on: it is left out of the round's
synchronisation only if the reply with its adapter is malformed too, or if it failed.
"""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrlvr.client.metrics import SwapMetrics
from fedrlvr.config import Config, PubSwapCoordination
from fedrlvr.coordination import (
    SCREENED,
    Pool,
    Sent,
    flaw,
    public_batch,
    stretches,
    usual_length,
    usual_lengths,
    wanted,
)
from fedrlvr.errors import FedrlvrError, MessageError, printable
from fedrlvr.output import logger
from fedrlvr.policy.stops import StopStrings, ended, overruns
from fedrlvr.reporting.observer import ExchangeEnded, Observer
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import stream
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.participation import Participation, Reply
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rewards import behind_answer
from fedrlvr.wire.messages import MOST_REASON, SINGLE, RespondRequest, nbytes
from fedrlvr.wire.public_messages import (
    EXCHANGE,
    PUBLIC,
    RESPOND,
    RESPONSES,
    SHARE,
    STAMP,
    Stamp,
    problems_record,
    read_responses,
    read_stamp,
    responses_record,
)

_log = logger("server")

DROPPED = ("stamp", "unreadable", "undecodable", "too_long", "too_many", "duplicate", "unfinished", *SCREENED)
"""Reasons for dropping a response; `unreadable` counts replies, since their responses cannot be counted."""
REPORTED = frozenset(SwapMetrics().summary())
"""Numbers a client may report of an exchange."""


@dataclass(frozen=True)
class PublicSet:
    """The public problems, with the data to check and grade responses to them.

    decode: token ids -> text. reward: (completion, problem) -> the true reward.
    model_id, tokenizer_id, vocabulary, eos_ids, special_ids: of the run's model. stops: the run's stop strings.
    """

    problems: Sequence[Problem]
    decode: Callable[[list[int]], str]
    reward: Callable[[str, Problem], float]
    model_id: str
    tokenizer_id: str
    vocabulary: int
    eos_ids: frozenset[int] = frozenset()
    special_ids: frozenset[int] = frozenset()
    stops: StopStrings | None = None


class Exchange:
    """One exchange of public responses within a round.

    number: counted from 1 within the round. clients: who takes part.
    """

    def __init__(self, config: Config, public: PublicSet, round_: int, number: int, clients: Sequence[str]) -> None:
        assert isinstance(config.coordination, PubSwapCoordination)
        self.coordination = coordination = config.coordination
        self.public = public
        self.round = round_
        self.number = number
        self.group = config.sampling.group_size
        self.longest = config.sampling.max_new_tokens
        self.grades_unfinished = config.train.unfinished == "grade"
        self.seed = config.run.seed
        place = (round_ - 1) * coordination.exchanges + number - 1
        batch = public_batch(len(public.problems), coordination.public_problems, place, self.seed)
        self.problems = [public.problems[i] for i in batch]
        self.trades = coordination.swap_rule.trades and len(clients) > 1
        """Whether responses are traded: with one client there is nobody to trade with."""
        self.collects = self.trades or config.aggregation.gains_are_public
        """Whether responses travel to the server, which grades them."""
        self.stamp = Stamp(
            model=public.model_id,
            tokenizer=public.tokenizer_id,
            temperature=config.sampling.temperature,
            round=round_,
            exchange=number,
        )
        self.pool = Pool([[] for _ in batch])
        self.notices: dict[str, str] = {}
        self.numbers: dict[str, dict[str, float]] = {client: {} for client in clients}
        self._usable: dict[str, list[Sent]] = {}
        self._usual: dict[str, float] = {}
        self._correct: dict[str, list[int]] = {}
        self._graded: dict[tuple[int, tuple[int, ...]], tuple[bool, str | None] | None] = {}

    def receive(self, client: str, content: RecordDict) -> None:
        """Check and grade a client's responses.

        Raises:
            MessageError: the reply is malformed.
            GradingError: a response cannot be graded.
        """
        if self.collects:
            self.numbers[client]["bytes_up"] = _nbytes(content, RESPONSES, STAMP)
            self._usable[client] = self._checked(client, content)

    def leave_out(self, client: str, error: FedrlvrError) -> None:
        """Go on with the exchange without a client's responses; its next message says why."""
        self._usable.pop(client, None)
        self._usual.pop(client, None)
        self._notice(client, printable(str(error))[:MOST_REASON])
        self.numbers[client] |= {"sent": 0, "dropped_unreadable": 1, **({"pooled": 0} if self.trades else {})}

    def fill_pool(self) -> None:
        """Make the pool of all usable responses."""
        if not self.trades:
            return
        pooled: list[tuple[str, Sent]] = []
        usual = usual_lengths(self._usual)
        for client, usable in sorted(self._usable.items()):
            longest = self.coordination.pool_length * usual.get(client, math.inf)
            kept = [(client, sent) for sent in usable if len(sent.token_ids) <= longest]
            self.numbers[client]["pooled"] = len(kept)
            if len(kept) < len(usable):
                self.numbers[client]["dropped_unusual"] = len(usable) - len(kept)
            pooled += kept
        for client, numbers in self.numbers.items():
            if screened := [f"{numbers[name]:.0f} {why}" for why in SCREENED if numbers.get(name := f"dropped_{why}")]:
                _log.warning(
                    "round %d, exchange %d, %s: correct responses that stay out of the pool: %s",
                    self.round,
                    self.number,
                    client,
                    ", ".join(screened),
                )
        rng = random.Random(stream(self.seed, "pool", self.round, self.number))
        self.pool = Pool.of(pooled, len(self.problems), per_problem=self.coordination.pool_size, rng=rng)

    def _checked(self, client: str, content: RecordDict) -> list[Sent]:
        """A client's correct responses, each once; what is dropped is counted, and a client at fault is told.

        Raises:
            MessageError: the reply is malformed.
            GradingError: a response cannot be graded.
        """
        stamp = read_stamp(content)
        if stamp is None:
            raise MessageError(f"{client}: a reply of exchange {self.number} without a stamp that can be read")
        wrong = stamp.difference(self.stamp)
        dropped: Counter[str] = Counter()
        sent = read_responses(
            content.get(RESPONSES),
            most=2 * self.group * len(self.problems),
            max_tokens=self.longest,
            logps=self.coordination.ratio_rule.needs_sender,
        )
        if wrong is not None:
            dropped["stamp"] = len(sent)
            self._notice(client, wrong)
        usable = [] if wrong else self._correct_ones(client, sent, dropped)
        self.numbers[client] |= {"sent": len(sent), **({"pooled": len(usable)} if self.trades else {})}
        self.numbers[client] |= {f"dropped_{why}": dropped[why] for why in DROPPED if dropped[why]}
        return usable

    def _notice(self, client: str, wrong: str) -> None:
        """Log, and tell a client, why its responses are left out; a client that is told gets no share either."""
        self.notices[client] = f"your responses of exchange {self.number} of round {self.round} were left out: {wrong}"
        _log.warning("round %d, exchange %d, %s: responses left out: %s", self.round, self.number, client, wrong)

    def _correct_ones(self, client: str, sent: Sequence[Sent], dropped: Counter[str]) -> list[Sent]:
        usable = []
        seen: set[tuple[int, tuple[int, ...]]] = set()
        answered: Counter[int] = Counter()
        correct = [0] * len(self.problems)
        lengths: tuple[list[int], list[int]] = ([], [])
        for response in sent:
            key = response.problem, response.token_ids
            if not self._decodable(response):
                dropped["undecodable"] += 1
                continue
            answered[response.problem] += 1
            if answered[response.problem] > self.group:
                dropped["too_many"] += 1
            elif len(response.token_ids) > self.longest:
                dropped["too_long"] += 1
            elif not self.grades_unfinished and not self._ended(response):
                dropped["unfinished"] += 1
            elif (verdict := self._grade(response)) is None:
                dropped["undecodable"] += 1
            else:
                is_correct, why = verdict
                correct[response.problem] += is_correct
                lengths[not is_correct or why is not None].append(len(response.token_ids))
                if key in seen:
                    dropped["duplicate"] += 1
                elif why is not None:
                    dropped[why] += 1
                elif is_correct:
                    usable.append(response)
                seen.add(key)
        self._correct[client] = correct
        self._usual[client] = usual_length(*lengths)
        self.numbers[client]["correct"] = sum(correct)
        return usable

    def _decodable(self, response: Sent) -> bool:
        tokens = response.token_ids
        in_place = 0 <= response.problem < len(self.problems) and len(tokens) > 0
        return in_place and min(tokens) >= 0 and max(tokens) < self.public.vocabulary

    def _ended(self, response: Sent) -> bool:
        try:
            return ended(response.token_ids, self.public.eos_ids, self.public.stops)
        except Exception:  # as in `_grade`
            return False

    def _grade(self, response: Sent) -> tuple[bool, str | None] | None:
        """Whether a response is correct, and why it may not be passed on if it is; None if it has no text. Each is
        graded once, whoever sent it."""
        key = response.problem, response.token_ids
        if key not in self._graded:
            try:
                text = self.public.decode(list(response.token_ids))
            except Exception:  # a tokenizer may fail in any way on ids that it has no token for
                self._graded[key] = None
            else:
                problem = self.problems[response.problem]
                correct = self.public.reward(text, problem) >= CORRECT
                self._graded[key] = correct, self._flaw(text, problem, response) if correct else None
        return self._graded[key]

    def _flaw(self, text: str, problem: Problem, response: Sent) -> str | None:
        if overruns(response.token_ids, self.public.stops):
            return "hidden"  # its text ends with the stop string
        return flaw(
            text,
            behind_answer(self.public.reward, text, problem),
            response.token_ids,
            special=self.public.special_ids,
            ends=self.public.eos_ids,
            tail=self.coordination.pool_tail,
        )

    def count_public(self, record: RoundRecord) -> None:
        """Add the server's own grades to the clients' numbers of the round, for weights that go by them.

        Every response that was asked for counts: one that is missing, cannot be read, or is too long is not correct.
        """
        for client in self.numbers:
            numbers, correct = record.client(client), sum(self._correct.get(client, ()))
            for name, count in (
                ("public_correct", correct),
                ("public_asked", self.group * len(self.problems)),
                ("public_problems", len(self.problems)),
            ):
                numbers[name] = numbers.get(name, 0) + count

    def put_share(self, body: RecordDict, client: str) -> None:
        """Put a client's share into a message to it, if there is one."""
        if (share := self.share(client)) is not None:
            body[SHARE] = share

    def share(self, client: str) -> ArrayRecord | None:
        """Others' correct responses for this client, as many as its groups can take; None if there are none for it.

        A client whose stamp did not match could not read them.
        """
        if not self.trades or client in self.notices:
            return None
        rng = random.Random(stream(self.seed, "share", client, self.round, self.number))
        correct = self._correct.get(client, [0] * len(self.problems))
        given: list[Sent] = []
        for problem, count in enumerate(correct):
            entries = self.pool.others(problem, client)
            need = wanted(count, self.group, self.coordination.swap)
            given += [entry.sent for entry in rng.sample(entries, min(need, len(entries)))]
        self.numbers[client]["offered"] = len(given)
        if not given:
            return None
        record = responses_record(given, self.public.vocabulary)
        self.count_down(client, RecordDict({SHARE: record}))
        return record

    def count_down(self, client: str, content: RecordDict) -> None:
        """Count the bytes of what is sent to a client for this exchange."""
        numbers = self.numbers[client]
        numbers["bytes_down"] = numbers.get("bytes_down", 0) + sum(r.count_bytes() for r in content.values())

    def took(self, client: str, content: RecordDict) -> None:
        """Store a client's report on its public steps: numbers of known names within float32's range."""
        record = content.get(EXCHANGE)
        if client in self.numbers and isinstance(record, MetricRecord):
            for name, value in record.items():
                if name in REPORTED and isinstance(value, int | float) and abs(value) <= SINGLE:
                    self.numbers[client][name] = value

    def end(self, record: RoundRecord, observer: Observer) -> None:
        """Add the exchange to its round's record, and let the observer know."""
        exchange = self.to_json()
        record.exchanges.append(exchange)
        observer.notify(ExchangeEnded(record.round, exchange))

    def to_json(self) -> dict[str, Any]:
        """The exchange in a line of metrics.jsonl."""
        record: dict[str, Any] = {"exchange": self.number, "problems": len(self.problems), "clients": self.numbers}
        if self.trades:
            record |= {"pool": self.pool.size, "unsolved": self.pool.unsolved / len(self.problems)}
        return record


def trade(
    config: Config,
    public: PublicSet,
    participation: Participation,
    arrays: ArrayRecord,
    grid: Grid,
    timeout: float,
) -> Exchange | None:
    """Run a round's local steps with an exchange after each stretch; returns the last exchange, whose shares are still
    to be dealt. It is no hook: Flower's strategies have none for it, so none needs to wrap it.

    arrays: the global adapter, which the first stretch brings to the clients.

    Raises:
        RoundError: a client failed.
    """
    coordination, clients, round_ = config.coordination, participation.clients, participation.record.round
    if not isinstance(coordination, PubSwapCoordination):
        return None
    last: Exchange | None = None
    for number, steps in enumerate(stretches(config.train.local_steps, coordination.exchanges), start=1):
        nodes = participation.drawn(round_, grid)
        exchange = Exchange(config, public, round_, number, [clients[node] for node in nodes])
        request = participation.request(
            RespondRequest, round_, steps, coordination=coordination, exchange=number, send=exchange.collects
        )
        messages = []
        for node in nodes:
            body = participation.content(request, node, None if last else arrays)
            notice = last.notices.get(clients[node], "") if last else ""
            body[PUBLIC] = problems_record(exchange.problems, notice)
            exchange.count_down(clients[node], RecordDict({PUBLIC: body[PUBLIC]}))
            if last:
                last.put_share(body, clients[node])
            messages.append(Message(body, node, RESPOND, group_id=str(round_)))
        replies = participation.ask(grid, messages, timeout)
        read = functools.partial(_receive, exchange, last)
        # Where everybody is needed for the round, a malformed reply costs its client this exchange only.
        unread = exchange.leave_out if config.federation.quorum == 1.0 else None
        for _ in participation.accepted(round_, replies, read, unread):
            pass
        exchange.fill_pool()
        if config.aggregation.gains_are_public:
            exchange.count_public(participation.record)
        if last:
            last.end(participation.record, participation.observer)
        last = exchange
    return last


def _receive(exchange: Exchange, last: Exchange | None, reply: Reply) -> None:
    """Read a client's responses, and its numbers of the exchange before."""
    nbytes(reply.message)  # what cannot be counted is malformed, and fails here
    exchange.receive(reply.client, reply.message.content)
    if last:
        last.took(reply.client, reply.message.content)


def _nbytes(content: RecordDict, *names: str) -> int:
    return sum(content[name].count_bytes() for name in names if name in content)

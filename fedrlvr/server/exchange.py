"""An exchange at the server: it grades every response again, makes the pool, and deals each client its share.

What a client says of its responses is not looked at. A response is dropped, and counted by who sent it, if it is not
stamped as this exchange's, cannot be decoded, is longer than asked for, is one too many of its problem, or is there
twice. Only what the server's own grader calls correct enters the pool.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedrlvr.client.metrics import SwapMetrics
from fedrlvr.config import Config, PubSwapCoordination
from fedrlvr.coordination import Pool, Sent, public_batch, wanted
from fedrlvr.errors import MessageError
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.public_messages import (
    EXCHANGE,
    RESPONSES,
    SHARE,
    STAMP,
    Stamp,
    read_responses,
    read_stamp,
    responses_record,
)

_log = logging.getLogger("fedrlvr.server")

DROPPED = ("stamp", "unreadable", "undecodable", "too_long", "too_many", "duplicate", "unfinished")
"""Why a response is dropped; `unreadable` counts replies, since what is in them cannot be."""
REPORTED = frozenset(SwapMetrics().summary())
"""Numbers a client may report of an exchange."""


@dataclass(frozen=True)
class PublicSet:
    """The public problems, and what the server judges responses to them by.

    decode: token ids -> text. reward: (completion, problem) -> the true reward.
    model_id, tokenizer_id, vocabulary, eos_ids: of the run's model.
    """

    problems: Sequence[Problem]
    decode: Callable[[list[int]], str]
    reward: Callable[[str, Problem], float]
    model_id: str
    tokenizer_id: str
    vocabulary: int
    eos_ids: frozenset[int] = frozenset()


class Exchange:
    """One exchange of a round.

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
        """Whether responses travel: with one client there is nobody to trade with."""
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
        self._correct: dict[str, list[int]] = {}
        self._graded: dict[tuple[int, tuple[int, ...]], bool | None] = {}

    def receive(self, replies: Mapping[str, RecordDict]) -> None:
        """Check and grade everybody's responses and make the pool.

        Raises:
            GradingError: a public problem cannot be graded at all.
        """
        if not self.trades:
            return
        pooled: list[tuple[str, Sent]] = []
        for client, content in sorted(replies.items()):
            self.numbers[client]["bytes_up"] = _nbytes(content, RESPONSES, STAMP)
            pooled += [(client, sent) for sent in self._usable(client, content)]
        rng = random.Random(stream(self.seed, "pool", self.round, self.number))
        self.pool = Pool.of(pooled, len(self.problems), per_problem=self.coordination.pool_size, rng=rng)

    def _usable(self, client: str, content: RecordDict) -> list[Sent]:
        """A client's correct responses, each once; what is dropped is counted, and a client at fault is told."""
        stamp = read_stamp(content)
        wrong = "no stamp" if stamp is None else stamp.difference(self.stamp)
        dropped: Counter[str] = Counter()
        sent: list[Sent] = []
        try:
            sent = read_responses(
                content.get(RESPONSES),
                most=2 * self.group * len(self.problems),
                max_tokens=self.longest,
                logps=self.coordination.ratio_rule.needs_sender,
            )
        except MessageError as error:
            dropped["unreadable"] = 1
            wrong = wrong or str(error)
        if wrong is not None:
            dropped["stamp"] = len(sent)
            self.notices[client] = (
                f"your responses of exchange {self.number} of round {self.round} were left out: {wrong}"
            )
            _log.warning("round %d, exchange %d, %s: responses left out: %s", self.round, self.number, client, wrong)
        usable = [] if wrong else self._correct_ones(client, sent, dropped)
        self.numbers[client] |= {"sent": len(sent), "pooled": len(usable)}
        self.numbers[client] |= {f"dropped_{why}": dropped[why] for why in DROPPED if dropped[why]}
        return usable

    def _correct_ones(self, client: str, sent: Sequence[Sent], dropped: Counter[str]) -> list[Sent]:
        usable = []
        seen: set[tuple[int, tuple[int, ...]]] = set()
        answered: Counter[int] = Counter()
        correct = [0] * len(self.problems)
        for one in sent:
            key = one.problem, one.token_ids
            if not self._decodable(one):
                dropped["undecodable"] += 1
                continue
            answered[one.problem] += 1
            if answered[one.problem] > self.group:
                dropped["too_many"] += 1
            elif len(one.token_ids) > self.longest:
                dropped["too_long"] += 1
            elif not self.grades_unfinished and one.token_ids[-1] not in self.public.eos_ids:
                dropped["unfinished"] += 1
            elif (verdict := self._grade(one)) is None:
                dropped["undecodable"] += 1
            else:
                correct[one.problem] += verdict
                if key in seen:
                    dropped["duplicate"] += 1
                elif verdict:
                    usable.append(one)
                seen.add(key)
        self._correct[client] = correct
        self.numbers[client]["correct"] = sum(correct)
        return usable

    def _decodable(self, one: Sent) -> bool:
        tokens = one.token_ids
        in_place = 0 <= one.problem < len(self.problems) and len(tokens) > 0
        return in_place and min(tokens) >= 0 and max(tokens) < self.public.vocabulary

    def _grade(self, one: Sent) -> bool | None:
        """Whether a response is correct; None if it has no text. Each is graded once, whoever sent it."""
        key = one.problem, one.token_ids
        if key not in self._graded:
            try:
                text = self.public.decode(list(one.token_ids))
            except Exception:  # a tokenizer may fail in any way on ids that it has no token for
                self._graded[key] = None
            else:
                self._graded[key] = self.public.reward(text, self.problems[one.problem]) >= CORRECT
        return self._graded[key]

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
        """Note what a client reports of its public steps: finite numbers of known names, and nothing else."""
        record = content.get(EXCHANGE)
        if isinstance(record, MetricRecord):
            for name, value in record.items():
                if name in REPORTED and isinstance(value, int | float) and math.isfinite(value):
                    self.numbers[client][name] = value

    def to_json(self) -> dict[str, Any]:
        """The exchange in a line of metrics.jsonl."""
        record: dict[str, Any] = {"exchange": self.number, "problems": len(self.problems), "clients": self.numbers}
        if self.trades:
            record |= {"pool": self.pool.size, "unsolved": self.pool.unsolved / len(self.problems)}
        return record


def _nbytes(content: RecordDict, *names: str) -> int:
    return sum(content[name].count_bytes() for name in names if name in content)

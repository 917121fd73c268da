"""The pool: an exchange's correct responses by problem, and who gave them (PubSwap, arXiv 2604.12160).

    P(x)    = every response to x that the server graded as correct
    P_-k(x) = those of P(x) that client k did not give

1. Correct is what the server's own grader says; what a client claims is not looked at.
2. A client's response is there once, however often it gave it; the same response of two clients is there twice.
3. At most `per_problem` responses are kept of a problem, drawn at random from all of them, so that a client which
   answers first or most cannot fill the pool. The bound is ours; the paper names none.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sent:
    """One response on its way between clients.

    problem: its problem's place in the exchange's list.
    logps: its tokens' log-probs under the policy that sampled it; empty where the ratio does not need them.
    age: optimizer steps the sender had taken since the adapter that all clients of the round started from.
    """

    problem: int
    token_ids: tuple[int, ...]
    logps: tuple[float, ...] = ()
    age: int = 0


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A correct response and the client that gave it."""

    origin: str
    sent: Sent


@dataclass(frozen=True)
class Pool:
    """Correct responses of an exchange, by problem.

    entries: one sequence for each problem of the exchange.
    """

    entries: Sequence[Sequence[PoolEntry]]

    @staticmethod
    def of(correct: Iterable[tuple[str, Sent]], problems: int, *, per_problem: int, rng: random.Random) -> Pool:
        """The pool of these (client, correct response), with at most `per_problem` of each of `problems` problems.

        rng: draws which stay where there are more.

        Raises:
            ValueError: a problem outside the list.
        """
        pools: list[dict[tuple[str, tuple[int, ...]], PoolEntry]] = [{} for _ in range(problems)]
        for client, sent in correct:
            if not 0 <= sent.problem < problems:
                raise ValueError(f"a response to problem {sent.problem} of {problems}")
            pools[sent.problem].setdefault((client, sent.token_ids), PoolEntry(client, sent))
        every = [list(responses.values()) for responses in pools]
        return Pool([entries if len(entries) <= per_problem else rng.sample(entries, per_problem) for entries in every])

    def others(self, problem: int, client: str) -> list[PoolEntry]:
        """P_-k(x): the entries of a problem that this client did not give."""
        return [entry for entry in self.entries[problem] if entry.origin != client]

    @property
    def size(self) -> int:
        """Number of entries, over all problems."""
        return sum(len(entries) for entries in self.entries)

    @property
    def unsolved(self) -> int:
        """Number of problems to which no client gave a correct response."""
        return sum(not entries for entries in self.entries)

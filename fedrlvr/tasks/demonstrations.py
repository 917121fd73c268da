"""Responses to imitate: which of a client's problems have one that would earn the reward.

A response counts as the policy would write it: its tokens and an end token, at most sampling.max_new_tokens of them,
decoded and graded by the client's own reward.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedrlvr.errors import DataError
from fedrlvr.labels.answers import rewards
from fedrlvr.output import logger
from fedrlvr.rl.samples import CORRECT
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import Dealt
from fedrlvr.tasks.partition import who_holds_what
from fedrlvr.tasks.problem import Problem

if TYPE_CHECKING:
    from fedrlvr.policy.base import Base

_log = logger("tasks")


def with_demonstrations(dealt: Dealt, base: Base, longest: int) -> Dealt:
    """Leave out training problems without a response to imitate, or whose response is wrong or too long.

    longest: of a response, in tokens. How many are left out of each client is logged.

    Raises:
        DataError: a client is left without problems; the text names the client.
    """
    clients = [_of_client(client, base, longest) for client in dealt.clients]
    return replace(
        dealt, clients=clients, train_table=who_holds_what({client.name: client.train for client in clients})
    )


def demonstrations_digest(dealt: Dealt) -> str:
    """Hash of every client's problems and of the responses to imitate."""
    digest = hashlib.sha256(dealt.digest.encode())
    for client in dealt.clients:
        for problem in (*client.answers.everything(), *client.test):
            digest.update(json.dumps((client.name, problem.id, problem.response)).encode())
    return digest.hexdigest()


def _of_client(client: ClientData, base: Base, longest: int) -> ClientData:
    held = {question.id for question in client.train}
    problems = [problem for problem in client.answers.everything() if problem.id in held]
    kept, lacking, long, wrong = _usable(client, problems, base, longest)
    if not kept:
        raise DataError(
            f"{client.name}: no training problem has a right response to imitate of at most sampling.max_new_tokens = "
            f"{longest} tokens ({lacking} have none, {long} too long and {wrong} wrong ones). "
            "Use a data set with worked solutions (gsm8k, math), add the column `response` to your own rows, or set "
            "sft.responses = 'own'."
        )
    if lacking or long or wrong:
        _log.info(
            "%s: left out %d training problems without a response to imitate, %d with one of more than %d tokens, and "
            "%d with a wrong one",
            client.name,
            lacking,
            long,
            longest,
            wrong,
        )
    return replace(client, train=[question for question in client.train if question.id in kept])


def _usable(
    client: ClientData, problems: Sequence[Problem], base: Base, longest: int
) -> tuple[set[str], int, int, int]:
    """Ids of the problems whose response can be imitated; and how many have none, too long or wrong ones."""
    kept: set[str] = set()
    lacking = long = wrong = 0
    for problem in problems:
        if not problem.response:
            lacking += 1
            continue
        token_ids = base.encode_response(problem.response)
        if len(token_ids) > longest:
            long += 1
        elif rewards(client.name, client.reward, problem, [base.decode(token_ids)])[0] < CORRECT:
            wrong += 1
        else:
            kept.add(problem.id)
    return kept, lacking, long, wrong

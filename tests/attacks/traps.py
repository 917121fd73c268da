"""Adapters with a component for each problem that a server guesses: each tells what its problem was rewarded for.

All work in the last layer before the head. Component i has a row a_i of A that is 1 on the features of prompt i's last
token and 0 on those of all other prompts and first letters, and a column of zeros in B, so that it changes nothing. The
gradient of that column is the sum over all tokens of (a_i . u) times the gradient of the hidden state, which is that of
problem i alone. A first step shows its signs, and the signs point to the letter that was rewarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from policies import END, PUBLIC, features, fitted, last_layer, towards
from victim import Victim

from fedrlvr.adapter import Factors

ABCD = "ABCD"
PUSH = 8
"""Components that make the policy answer each letter, or nothing, about equally often."""
SCALE, PULL, TINY = 8.0, 300.0, 1e-3


def all_answers(
    victim: Victim, task: str, prompts: Sequence[str], privacy: Mapping[str, float] | None = None, **train: Any
) -> str:
    """The letters that one reply of one message gives away, in the order of the prompts.

    privacy: clip and noise that the message asks for. train: settings of its training that differ.

    Raises:
        Refused: with the site's reason.
    """
    letters = _letters(victim)
    columns = moved(victim, task, prompts, privacy=privacy, **train)
    return "".join(max(ABCD, key=lambda letter: float((column.sign() * letters[letter]).sum())) for column in columns.T)


def pointed(victim: Victim, task: str, prompts: Sequence[str], seed: int = 0, **train: Any) -> list[float]:
    """How much the component of each prompt has moved towards one of the letters: the largest cosine.

    That of a prompt that is not there has moved by what is left of the other problems, in no such direction.

    Raises:
        Refused: with the site's reason.
    """
    letters = _letters(victim)
    columns = moved(victim, task, prompts, seed, **train).sign()
    return [
        max(float(torch.cosine_similarity(column, letters[letter], dim=0)) for letter in ABCD) for column in columns.T
    ]


def moved(
    victim: Victim,
    task: str,
    prompts: Sequence[str],
    seed: int = 0,
    privacy: Mapping[str, float] | None = None,
    **train: Any,
) -> torch.Tensor:
    """The columns of B [d, prompts] that one reply gives back, which were 0 when they were sent.

    Raises:
        Refused: with the site's reason.
    """
    rank = PUSH + len(prompts)
    cohort = victim.cohort(rank, SCALE * rank)
    fresh = cohort.fresh_adapter(1)
    name = last_layer(fresh)
    A, B = (torch.zeros_like(factor) for factor in (fresh.layers[name].A, fresh.layers[name].B))
    public = features(victim.home, name, PUBLIC, last=False)
    direction = towards(victim.home, {END: 1.0, **dict.fromkeys(ABCD, 0.97)})
    A[:PUSH] = fitted(public, torch.ones(len(public)), 1e-3).float()
    B[:, :PUSH] = (direction * PULL / fresh.scale / PUSH).float().unsqueeze(1)
    places = features(victim.home, name, [*prompts, *(p + letter for p in prompts for letter in ABCD)], last=True)
    for place in range(len(prompts)):
        trap = fitted(places, torch.eye(len(places))[place])
        A[PUSH + place] = (trap / trap.abs().max() * TINY).float()
    adapter = fresh.alike({**fresh.layers, name: Factors(A, B)})
    settings = {"local_steps": 1, "problems_per_step": len(prompts), "learning_rate": 1e-3, **train}
    noise = {} if privacy is None else {"privacy": dict(privacy)}
    sampling = {"group_size": 64, "max_new_tokens": 8}
    reply = victim.train(task, adapter, train=settings, sampling=sampling, seed=seed, **noise)
    assert reply.adapter is not None
    return reply.adapter.layers[name].B[:, PUSH:]


def _letters(victim: Victim) -> Mapping[str, torch.Tensor]:
    """By letter the change of the hidden state [d] that makes it likelier and the others less likely."""
    model, tokenizer = victim.home.model, victim.home.tokenizer
    head = (model.get_output_embeddings().weight * model.get_decoder().norm.weight).detach()
    rows = {letter: head[tokenizer.convert_tokens_to_ids(letter)] for letter in ABCD}
    mean = torch.stack(list(rows.values())).mean(dim=0)
    return {letter: row - mean for letter, row in rows.items()}

"""Several prompts tried on the same problems, on one model: the engine of `fedrlvr prompts`. Nothing is trained, sent
or written.

Problems are validation problems where there are any, else training problems. Held-out ones are taken only when they
are asked for: a prompt that was chosen by them makes their later score too high. Every client's problems are asked as
that client asks them, with its own examples, and all candidates are sampled with the same random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedrlvr.config import Config
from fedrlvr.errors import ConfigError, DataError, FedrlvrError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.model_check import check_prompt
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import CORRECT, Response
from fedrlvr.seeds import stream
from fedrlvr.server.starting_adapter import beginning
from fedrlvr.simulation.prompt_plan import Candidate
from fedrlvr.simulation.run import new_cohort
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import deal, instruction_of
from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.prompts import Prompt
from fedrlvr.tasks.rewards import grades_by_kind

SHOWN = 3
"""Number of problems whose first response is shown."""
_ROW = "model"

Chosen = Literal["validation", "training", "test"]


@dataclass(frozen=True)
class ShownResponse:
    """A response for people to read. answer: that was read from it. reward: by the problem's own answer."""

    problem: Problem
    response: Response
    answer: str | None
    reward: float


@dataclass(frozen=True)
class Trial:
    """The numbers of one candidate on all problems.

    rates: pass@1 of each problem. readable: share of responses with an answer that can be read; None with a reward of
    the user's own. length: mean number of tokens of a response. cut: share cut at the length limit. prompt_tokens: mean
    length of a prompt. prompt: the first one, as the model reads it. error: why there is no trial.
    """

    candidate: Candidate
    rates: Sequence[float] = ()
    readable: float | None = None
    length: float = 0.0
    cut: float = 0.0
    prompt_tokens: float = 0.0
    prompt: str = ""
    shown: Sequence[ShownResponse] = ()
    same_as: str | None = None
    error: str = ""


@dataclass
class PromptTrials:
    """Trials of a run's model on some of its problems.

    split: of the problems; None: validation problems if there are any, else training problems. count: number of
    problems. samples: responses to each.

    Raises:
        ConfigError, DataError: there are no such problems, or their answers are not paid for.
        FedrlvrError: as the data and the model say.
    """

    config: Config
    split: Chosen | None
    count: int
    samples: int
    problems: list[tuple[ClientData, Problem]] = field(init=False)
    cohort: Cohort = field(init=False)

    def __post_init__(self) -> None:
        run = self.config.run.model_copy(update={"directory": None, "ledgers": None})  # so that no ledger is opened
        self.config = self.config.model_copy(update={"run": run})
        clients = deal(self.config).clients
        if self.split is None:
            self.split = "validation" if any(client.validation for client in clients) else "training"
        self.problems = _drawn(self.config, {client.name: client for client in clients}, self.split, self.count)
        self.cohort = new_cohort(self.config)
        fresh = self.cohort.fresh_adapter(stream(self.config.run.seed, "adapter"))
        begin = beginning(self.config, Path(), fresh)
        self.cohort.seat({_ROW: begin.adapter}, {_ROW: begin.change} if begin.change is not None else None)

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Trial]:
        """Try each candidate. One that cannot be used is a trial with an error, and one that asks in the very same way
        as an earlier one is named and not tried again.

        Raises:
            FedrlvrError: as sampling and grading say.
        """
        before: dict[str, str] = {}
        base = self.cohort.base
        for candidate in candidates:
            try:
                self.cohort.base = base.asking(candidate.config.prompt)
                check_prompt(self.cohort.base)
                prompts = [self._prompt(candidate, client, problem) for client, problem in self.problems]
                ids = self.cohort.base.encode_all(prompts)
                self._check_lengths(ids)
            except FedrlvrError as error:
                yield Trial(candidate, error=str(error))
                continue
            key = repr((ids, self.cohort.base.stop))
            if key in before:
                yield Trial(candidate, same_as=before[key])
                continue
            before[key] = candidate.name
            yield self._trial(candidate, prompts, ids)

    @staticmethod
    def _prompt(candidate: Candidate, client: ClientData, problem: Problem) -> Prompt:
        prompt = candidate.config.prompt
        instruction = instruction_of(candidate.config.data, prompt)
        return replace(client, wording=prompt, instruction=instruction).prompts.ask(problem)

    def _check_lengths(self, ids: Sequence[Sequence[int]]) -> None:
        longest, room = max(map(len, ids)), self.cohort.base.max_length - self.config.sampling.max_new_tokens
        if longest > room:
            raise DataError(
                f"a prompt has {longest} tokens, and with sampling.max_new_tokens the model has room for {room}. Lower "
                "it, or shorten the prompt."
            )

    def _trial(self, candidate: Candidate, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> Trial:
        sampling, base = self.config.sampling, self.cohort.base
        decoding = replace(Decoding.of(sampling), responses=self.samples)
        drawn = self.cohort.sample({_ROW: ids}, decoding, {_ROW: stream(self.config.run.seed, "prompts")})[_ROW]
        responses = [response for group in drawn for response in group]
        rewards = [
            client.grade(problem, [response.text for response in group])
            for (client, problem), group in zip(self.problems, drawn, strict=True)
        ]
        answers = [
            extract(response.text, problem.kind)
            for (_, problem), group in zip(self.problems, drawn, strict=True)
            for response in group
        ]
        by_kind = all(grades_by_kind(client.reward) for client, _ in self.problems)
        return Trial(
            candidate,
            [sum(reward >= CORRECT for reward in of_group) / len(of_group) for of_group in rewards],
            readable=1 - answers.count(None) / len(answers) if by_kind else None,
            length=sum(len(response.token_ids) for response in responses) / len(responses),
            cut=sum(not response.finished for response in responses) / len(responses),
            prompt_tokens=sum(map(len, ids)) / len(ids),
            prompt=base.rendered(prompts[0]),
            shown=[
                ShownResponse(problem, group[0], extract(group[0].text, problem.kind), of_group[0])
                for (_, problem), group, of_group in list(zip(self.problems, drawn, rewards, strict=True))[:SHOWN]
            ],
        )


def _drawn(
    config: Config, clients: dict[str, ClientData], split: Chosen, count: int
) -> list[tuple[ClientData, Problem]]:
    """Problems of a split, clients in turn, each client's drawn by seed; with the clients that hold them."""
    if split == "training" and config.supervision.type != "labels":
        raise ConfigError(
            f"With supervision.type = {config.supervision.type!r} the answers of training problems are not paid for, "
            "so no prompt is chosen by them. Set aside validation problems with data.validation_size."
        )
    queues: list[list[tuple[ClientData, Problem]]] = []
    for name, client in clients.items():
        held = {"validation": client.validation, "test": client.test}
        problems = list(client.answers.everything() if split == "training" else held[split])
        random.Random(stream(config.run.seed, name, "prompts")).shuffle(problems)
        queues.append([(client, problem) for problem in problems])
    turns = range(max(map(len, queues), default=0))
    in_turn = [queue[turn] for turn in turns for queue in queues if turn < len(queue)]
    if not in_turn:
        raise DataError(f"There are no {split} problems to try prompts on. Raise data.validation_size.")
    return in_turn[:count]

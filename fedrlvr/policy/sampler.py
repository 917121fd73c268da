"""The interface of a sampler, which draws the responses: its request and its result.

A sampler is a class of the interface `Sampler`, in a file of its own, and a line in `policy/cohort.py:sampler_of`.
`Cohort.self_check` then holds it against the training pass: adapters must move its log-probs, which must agree. One
that is another program is also compared with the decode loop (`agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedrlvr.adapter import Adapter
from fedrlvr.config import SamplingConfig
from fedrlvr.errors import DataError
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.stops import StopStrings


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding. A temperature of 0 is greedy. past_end: go on after an end token, to compare log-probs."""

    responses: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    past_end: bool = False

    @staticmethod
    def of(config: SamplingConfig) -> Decoding:
        """Settings of decoding for training samples, from the config."""
        return Decoding(config.group_size, config.max_new_tokens, config.temperature, config.top_p, config.top_k)


@dataclass(frozen=True)
class SampleRequest:
    """Responses to draw for each seated client.

    prompts: token ids of each prompt by client, in the order in which clients are seated; none for some, perhaps.
    seeds: by client. Responses of a client depend on its seed, adapter and prompts, not on other clients.
    adapters: makes copies of all seated clients' adapters as they are now, for a sampler with a model of its own.
    changes: by client the frozen change (alpha / rank) B A of its base weights, which its adapter comes on top of.
        Clients without one are left out.
    hidden_states: whether they are wanted. stops: strings that end a response; None: there are none.
    """

    prompts: Mapping[str, Sequence[Sequence[int]]]
    decoding: Decoding
    seeds: Mapping[str, int]
    adapters: Callable[[], Mapping[str, Adapter]]
    changes: Mapping[str, Adapter]
    hidden_states: bool = False
    stops: StopStrings | None = None

    def check_lengths(self, most: int) -> None:
        """Refuse a prompt that its longest response does not fit behind.

        most: positions of the model.

        Raises:
            DataError: there is such a prompt.
        """
        longest = max((len(ids) for client in self.prompts.values() for ids in client), default=0)
        if longest + self.decoding.max_new_tokens > most:
            raise DataError(
                f"a prompt of {longest} tokens and sampling.max_new_tokens = {self.decoding.max_new_tokens} exceed the "
                f"model's {most} positions. Lower max_new_tokens or leave long problems out."
            )


@dataclass(slots=True)
class SampledResponse:
    """One response, with its log-probs at sampling.

    token_ids: its tokens, the end token or the token that completes a stop string included if one was drawn.
    logps: log-prob of each token under the whole distribution at the temperature (greedy: at 1), before any top-p or
        top-k cut.
    finished: whether it ended so, rather than at `max_new_tokens`.
    """

    token_ids: list[int]
    logps: list[float]
    finished: bool


@dataclass(frozen=True)
class ClientSamples:
    """One client's responses by prompt and draw, and its hidden states where they were wanted."""

    responses: list[list[SampledResponse]]
    hidden_states: HiddenStates | None = None


class Sampler(Protocol):
    """Draws responses of the seated clients' policies: base model, change of its weights, adapter.

    rounds_otherwise: whether another program computes, whose rounding differs from that of the training pass. Responses
        are then scored once more before they are trained on, and their tokens get importance weights.
    description: what draws the responses and why, for a person.
    """

    rounds_otherwise: bool

    @property
    def description(self) -> str:
        """Words for `doctor` and the first lines of a run."""

    def sample(self, request: SampleRequest) -> Mapping[str, ClientSamples]:
        """`request.decoding.responses` responses to each prompt, for every client of the request, in its order.

        Raises:
            DataError: a prompt and its longest response do not fit the model.
            ModelError: hidden states are wanted, and this sampler or its model cannot give them.
            SamplerError: the sampler is another program, and cannot be used.
        """


@dataclass(frozen=True)
class Agreement:
    """Agreement of two samplers on greedy responses to the same prompts.

    responses, parted: compared pairs, and those that part at some token, where the likeliest two are about as likely.
    tokens: compared, each pair's up to the token at which it parts. difference: the largest of a log-prob.
    """

    responses: int
    parted: int
    tokens: int
    difference: float

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.responses + other.responses,
            self.parted + other.parted,
            self.tokens + other.tokens,
            max(self.difference, other.difference),
        )

    def __str__(self) -> str:
        same = "all the same" if not self.parted else f"{self.parted} of them part at a token that is as likely as ours"
        return (
            f"{self.responses} greedy responses, {same}; {self.tokens} log-probs differ from the decode loop's by at "
            f"most {self.difference:.1e}"
        )


def agreement(expected: Mapping[str, ClientSamples], drawn: Mapping[str, ClientSamples]) -> Agreement:
    """Compare the responses that a sampler has drawn with those expected of it.

    A log-prob that is nan makes the difference infinite.
    """
    responses = parted = tokens = 0
    difference = 0.0
    for client, of_client in expected.items():
        for our_group, their_group in zip(of_client.responses, drawn[client].responses, strict=True):
            for our, their in zip(our_group, their_group, strict=True):
                pairs = list(zip(our.token_ids, their.token_ids, strict=False))
                until = next((i + 1 for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
                gaps = [abs(a - b) for a, b in zip(our.logps[:until], their.logps[:until], strict=True)]
                difference = max([difference, *(gap if gap == gap else math.inf for gap in gaps)])
                responses, parted, tokens = responses + 1, parted + (our.token_ids != their.token_ids), tokens + until
    return Agreement(responses, parted, tokens, difference)

"""The interface of a sampler, which draws the responses: its request and its result.

A sampler is a class of the interface `Sampler`, in a file of its own, and the line in `Cohort.__init__` that makes it.
`Cohort.self_check` then holds it against the training pass: adapters must move its log-probs, which must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedrlvr.adapter import Adapter
from fedrlvr.config import SamplingConfig
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
    """Draws responses of the seated clients' policies: base model, change of its weights, adapter."""

    def sample(self, request: SampleRequest) -> Mapping[str, ClientSamples]:
        """`request.decoding.responses` responses to each prompt, for every client of the request, in its order.

        Raises:
            DataError: a prompt and its longest response do not fit the model.
            ModelError: hidden states are wanted, and this sampler or its model cannot give them.
        """

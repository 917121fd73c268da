"""What the cohort asks of a sampler and makes of its samples, with one that draws the same tokens always."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import moved_adapter, same_tensors, tiny_cohort

from fedrlvr.errors import ModelError
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.sampler import ClientSamples, Decoding, SampledResponse, SampleRequest


class SameSampler:
    """Draws "12" with the log-probs -1 and -2, and keeps what it was asked."""

    rounds_otherwise = False
    description = "one that draws the same always"

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        self.requests: list[SampleRequest] = []

    def sample(self, request: SampleRequest) -> dict[str, ClientSamples]:
        self.requests.append(request)
        samples = {}
        for client, prompts in request.prompts.items():
            group = [SampledResponse(self.token_ids, [-1.0, -2.0], False)] * request.decoding.responses
            states = HiddenStates(torch.zeros(len(prompts), 3), torch.ones(len(prompts), len(group), 3))
            samples[client] = ClientSamples([group for _ in prompts], states if request.hidden_states else None)
        return samples


def test_the_cohort_asks_for_every_client_and_decodes_what_was_drawn(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    sampler = SameSampler(cohort.base.encode("12"))
    cohort.sampler = sampler
    adapters = {client: moved_adapter(cohort, i) for i, client in enumerate("abc")}
    change = moved_adapter(cohort, 7)
    cohort.seat(adapters, {"b": change, "elsewhere": change})
    states: dict[str, HiddenStates] = {}
    drawn = cohort.sample({"c": [[3, 4], [5]], "a": [[6]]}, Decoding(2, 2), {"a": 8, "c": 9}, states)

    (request,) = sampler.requests
    assert request.prompts == {"a": [[6]], "b": (), "c": [[3, 4], [5]]}
    assert list(request.prompts) == ["a", "b", "c"]
    assert (request.seeds["a"], request.seeds["c"]) == (8, 9)
    assert request.changes == {"b": change}
    now = request.adapters()
    assert all(same_tensors(now[client], adapters[client]) for client in "abc")

    assert [len(drawn[client]) for client in "abc"] == [1, 0, 2]
    for client in "ac":
        for group in drawn[client]:
            assert [(r.text, r.logps, r.finished) for r in group] == [("12", [-1.0, -2.0], False)] * 2
    assert [states[client].response_PGH.shape for client in "abc"] == [(1, 2, 3), (0, 2, 3), (2, 2, 3)]


def test_a_sampler_that_never_hears_of_the_adapters_is_found_out(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.sampler = SameSampler(cohort.base.encode("12"))
    with pytest.raises(ModelError, match="adapter"):
        cohort.self_check()

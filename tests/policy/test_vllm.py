"""The vLLM sampler against a server of the same API: what it asks, what it makes of replies, and which it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fake_vllm import FakeVllm, Fault
from models import moved_adapter, tiny_cohort

from fedrlvr.config import EngineConfig, PromptConfig
from fedrlvr.errors import DataError, SamplerError
from fedrlvr.policy.choices import choices
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.sampler import ClientSamples, Decoding, SampledResponse, agreement
from fedrlvr.policy.vllm.http import VllmHttp
from fedrlvr.policy.vllm.sampler import VllmSampler
from fedrlvr.policy.vllm.server import StartedServer

ENGINE = EngineConfig(sampler="vllm", vllm_address="http://127.0.0.1:1")
PROMPTS = {"a": [[3, 4, 5], [6]], "b": [[7, 8]]}
SEEDS = {"a": 1, "b": 2}


@pytest.fixture
def served(llama: Path, tmp_path: Path) -> Callable[..., tuple[Cohort, FakeVllm]]:
    """A cohort whose sampler asks a fake server, which has a model of its own."""

    def make(fault: Fault | None = None, *, deaf: bool = False) -> tuple[Cohort, FakeVllm]:
        cohort, server = tiny_cohort(llama), FakeVllm(tiny_cohort(llama), fault, deaf=deaf)
        http = VllmHttp("http://127.0.0.1:1", transport=server.transport)
        engine = ENGINE.model_copy(update={"vllm_adapters": tmp_path})
        cohort.sampler = VllmSampler(cohort.base, cohort.stack, engine, http)
        cohort.seat({client: moved_adapter(cohort, i) for i, client in enumerate("ab")})
        return cohort, server

    return make


def test_the_server_draws_from_each_clients_adapter(served: Any, tmp_path: Path) -> None:
    cohort, server = served()
    decoding = Decoding(2, 5)
    drawn = cohort.sample(PROMPTS, decoding, SEEDS)
    assert [[len(group) for group in drawn[client]] for client in "ab"] == [[2, 2], [2]]
    cohort.begin_training(*_training())
    for client, of_client in drawn.items():
        before = [[list(r.logps) for r in group] for group in of_client]
        cohort.rescore({client: PROMPTS[client]}, {c: drawn[c] if c == client else [] for c in "ab"})
        for group, logps in zip(of_client, before, strict=True):
            for response, drawn_logps in zip(group, logps, strict=True):
                assert response.logps == pytest.approx(drawn_logps, abs=1e-4)
    assert len({body["seed"] for body in server.requests}) == 3  # a seed for each prompt
    assert not server.loaded
    assert not list(tmp_path.iterdir())  # the directories are removed
    assert not any(path.exists() for path in server.paths)
    assert len(set(server.paths)) == 2


def test_adapters_are_handed_over_under_new_names_each_time(served: Any) -> None:
    cohort, server = served()
    cohort.sample(PROMPTS, Decoding(1, 2), SEEDS)
    cohort.sample(PROMPTS, Decoding(1, 2), SEEDS)
    assert len({path.name for path in server.paths}) == 4


def test_a_started_server_is_given_absolute_paths_and_its_failing_start_is_told_once(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server works in a directory of its own, where relative ones would be others."""
    monkeypatch.chdir(llama.parent)
    started: list[tuple[Path, list[str]]] = []

    class Failing:
        directory, pid = None, None

        def __init__(self, python: Path, arguments: list[str], **_: Any) -> None:
            started.append((python, arguments))

        def ready(self) -> VllmHttp:
            raise SamplerError("the vLLM server ended")

        dying = StartedServer.dying
        _process = None

    monkeypatch.setattr("fedrlvr.policy.vllm.sampler.StartedServer", Failing)
    cohort = tiny_cohort(Path(llama.name))
    engine = EngineConfig(sampler="vllm", vllm_python=Path("vllm/bin/python"))
    cohort.sampler = VllmSampler(cohort.base, cohort.stack, engine)
    cohort.seat({client: moved_adapter(cohort, i) for i, client in enumerate("ab")})
    with pytest.raises(SamplerError, match="ended"):
        cohort.sample(PROMPTS, Decoding(1, 2), SEEDS)
    ((python, arguments),) = started
    assert python == llama.parent / "vllm" / "bin" / "python"
    assert arguments[arguments.index("--model") + 1] == str(llama)


def test_a_server_that_is_lost_before_a_step_is_started_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was alive when it was looked at, and is gone at the first request."""

    def gone(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("closed")

    transports = [httpx.MockTransport(gone), FakeVllm(tiny_cohort(llama)).transport]
    https = [VllmHttp("http://127.0.0.1:1", transport=transport) for transport in transports]

    class Lost:
        directory, pid = tmp_path, 1

        def __init__(self, *_: Any, **__: Any) -> None:
            self.stopped = 0

        def ready(self) -> VllmHttp:
            return https[self.stopped]

        def keep_log(self) -> str:
            return "kept"

        def stop(self) -> None:
            self.stopped += 1

    monkeypatch.setattr("fedrlvr.policy.vllm.sampler.StartedServer", Lost)
    cohort = tiny_cohort(llama)
    cohort.sampler = VllmSampler(cohort.base, cohort.stack, EngineConfig(sampler="vllm", vllm_python=Path("python")))
    cohort.seat({client: moved_adapter(cohort, i) for i, client in enumerate("ab")})
    drawn = cohort.sample(PROMPTS, Decoding(1, 2), SEEDS)
    assert [len(drawn[client]) for client in "ab"] == [2, 1]


def test_adapters_lie_in_the_directory_that_goes_with_a_started_server(served: Any, tmp_path: Path) -> None:
    cohort, server = served()
    cohort.sampler.engine = ENGINE
    cohort.sampler._server = SimpleNamespace(directory=tmp_path)
    cohort.sample(PROMPTS, Decoding(1, 2), SEEDS)
    assert {path.parents[1] for path in server.paths} == {tmp_path}
    assert not list(tmp_path.iterdir())


def test_a_change_of_the_base_weights_is_part_of_what_is_handed_over(served: Any) -> None:
    cohort, _ = served()
    adapters = {client: moved_adapter(cohort, i) for i, client in enumerate("ab")}
    cohort.seat(adapters, {"b": moved_adapter(cohort, 7)})
    request = cohort._request(PROMPTS, Decoding(1, 6, temperature=0.0), SEEDS)
    ours = DecodeSampler(cohort.base, cohort.stack, cohort.engine).sample(request)
    result = agreement(ours, cohort.sampler.sample(request))
    assert (result.parted, result.responses) == (0, 3)
    assert result.difference < 1e-4


def test_a_greedy_response_is_asked_for_once(served: Any) -> None:
    cohort, server = served()
    drawn = cohort.sample(PROMPTS, Decoding(3, 4, temperature=0.0), SEEDS)
    assert {body["n"] for body in server.requests} == {1}
    assert all(len(group) == 3 and len({tuple(r.token_ids) for r in group}) == 1 for g in drawn.values() for group in g)


def test_after_a_cut_the_log_probs_are_of_the_whole_distribution(served: Any) -> None:
    def cut(reply: dict[str, Any]) -> None:  # the log-probs of a distribution that was cut are larger
        for choice in reply["choices"]:
            choice["logprobs"]["token_logprobs"] = [value / 2 for value in choice["logprobs"]["token_logprobs"]]

    cohort, _ = served(cut)
    drawn = cohort.sample(PROMPTS, Decoding(2, 4, temperature=0.7, top_p=0.9), SEEDS)
    before = [[list(r.logps) for r in group] for group in drawn["a"]]
    cohort.begin_training(*_training(temperature=0.7))
    cohort.rescore({"a": PROMPTS["a"]}, {"a": drawn["a"], "b": []})
    assert [[r.logps for r in group] for group in drawn["a"]] == before


def test_hidden_states_are_those_of_the_decode_loop(served: Any) -> None:
    cohort, _ = served()
    request = cohort._request(PROMPTS, Decoding(2, 5, temperature=0.0), SEEDS, hidden_states=True)
    served_samples = cohort.sampler.sample(request)
    ours = DecodeSampler(cohort.base, cohort.stack, cohort.engine).sample(request)
    for client in "ab":
        states: list[HiddenStates | None] = [ours[client].hidden_states, served_samples[client].hidden_states]
        assert states[0] is not None
        assert states[1] is not None
        torch.testing.assert_close(states[0].prompt_PH, states[1].prompt_PH, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states[0].response_PGH, states[1].response_PGH, atol=1e-4, rtol=1e-4)


def test_stop_strings_end_a_response_where_fedrlvr_finds_them(served: Any) -> None:
    cohort, server = served()
    plain = cohort.sample(PROMPTS, Decoding(2, 6), SEEDS)
    text = plain["a"][0][0].text
    assert len(text) > 2
    cohort.base = cohort.base.asking(PromptConfig(stop=[text[:2]]))
    (first, _), _ = cohort.sample(PROMPTS, Decoding(2, 6), SEEDS)["a"]
    assert first.finished
    assert first.text == text[:2]
    assert server.requests[-1]["stop"] == [text[:2]]


def test_importance_weights_are_truncated_at_the_cap(served: Any) -> None:
    def halved(reply: dict[str, Any]) -> None:  # as if the server had drawn these tokens with another probability
        for choice in reply["choices"]:
            logps = choice["logprobs"]["token_logprobs"]
            choice["logprobs"]["token_logprobs"] = [value - 5e-4 if i % 2 else value for i, value in enumerate(logps)]

    cohort, _ = served(halved)
    cohort.begin_training(*_training())
    drawn = cohort.sample(PROMPTS, Decoding(2, 4, past_end=True), SEEDS)
    cohort.correct(PROMPTS, drawn, cap=1.0002)
    for of_client in drawn.values():
        for response in (response for group in of_client for response in group):
            assert response.weights == pytest.approx([1.0, 1.0002, 1.0, 1.0002], abs=1e-4)


def test_the_start_up_check_compares_both_samplers(served: Any) -> None:
    cohort, _ = served()
    cohort.self_check()
    assert cohort.agreement.difference < 1e-3
    assert (cohort.agreement.responses, cohort.agreement.parted) == (12, 0)
    assert "vLLM 0.32.0" in choices(cohort)["sampler"]


def test_a_server_that_adapters_do_not_reach_is_found_out(served: Any) -> None:
    cohort, _ = served(deaf=True)
    with pytest.raises(Exception, match="vLLM"):
        cohort.self_check()
    cohort, server = served()
    cohort.begin_training(*_training())
    server.deaf = True
    drawn = cohort.sample(PROMPTS, Decoding(2, 4), SEEDS)
    with pytest.raises(SamplerError, match=r"engine\.sampler"):
        cohort.correct(PROMPTS, drawn, cap=2.0)


def test_a_prompt_that_does_not_fit_is_refused_before_the_server_is_asked(served: Any) -> None:
    cohort, server = served()
    with pytest.raises(DataError, match=r"sampling\.max_new_tokens"):
        cohort.sample({"a": [[3] * 600]}, Decoding(1, 4), SEEDS)
    assert not server.requests


def test_no_connection_is_used_twice() -> None:
    """A server may close a connection that was kept, just as it is used again."""
    ports: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Write nothing to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        http = VllmHttp(f"http://127.0.0.1:{server.server_port}")
        assert all(http.healthy() for _ in range(3))
    finally:
        server.shutdown()
        server.server_close()
    assert len(set(ports)) == 3


def _first(reply: dict[str, Any]) -> dict[str, Any]:
    return reply["choices"][0]


def _logps(reply: dict[str, Any], value: Any) -> None:
    _first(reply)["logprobs"]["token_logprobs"][0] = value


def _closed(reply: dict[str, Any]) -> None:
    raise httpx.ReadError("closed")


FAULTS: dict[str, Fault] = {
    "no choices": lambda reply: reply.clear(),
    "too few responses": lambda reply: reply["choices"].pop() and None,
    "the same place twice": lambda reply: _first(reply).update(index=1),
    "a place that is no number": lambda reply: _first(reply).update(index="0"),
    "a response that is no object": lambda reply: reply["choices"].__setitem__(0, 3),
    "no token ids": lambda reply: _first(reply).update(token_ids=None),
    "tokens that are text": lambda reply: _first(reply).update(token_ids=["a"]),
    "no tokens": lambda reply: _first(reply).update(token_ids=[], logprobs={"token_logprobs": []}),
    "too many tokens": lambda reply: _first(reply).update(token_ids=[3] * 9, logprobs={"token_logprobs": [-1.0] * 9}),
    "a token of another model": lambda reply: _first(reply)["token_ids"].__setitem__(0, 1 << 20),
    "a negative token": lambda reply: _first(reply)["token_ids"].__setitem__(0, -1),
    "cut short": lambda reply: _first(reply).update(token_ids=[3], logprobs={"token_logprobs": [-1.0]}),
    "no log-probs": lambda reply: _first(reply).update(logprobs=None),
    "a log-prob too few": lambda reply: _first(reply)["logprobs"]["token_logprobs"].pop() and None,
    "nan": lambda reply: _logps(reply, float("nan")),
    "minus infinity": lambda reply: _logps(reply, -9999.0),
    "a probability above 1": lambda reply: _logps(reply, 0.5),
    "a log-prob that is text": lambda reply: _logps(reply, "-1"),
    "no JSON": lambda reply: httpx.Response(200, text="<html>"),
    "a list": lambda reply: httpx.Response(200, json=[1]),
    "status 500": lambda reply: httpx.Response(500, json={"error": {"message": "prompt [3, 4, 5] failed"}}),
    "status 400 in HTML": lambda reply: httpx.Response(400, text="<html>"),
    "a number beyond all floats": lambda reply: _logps(reply, -(10**400)),
    "nested without end": lambda reply: httpx.Response(200, text="[" * 100_000),
    "a reason nested without end": lambda reply: httpx.Response(500, text="[" * 100_000),
    "more bytes than were asked for": lambda reply: httpx.Response(200, content=b" " * (2 << 20) + b"{}"),
    "a broken encoding": lambda reply: httpx.Response(200, headers={"content-encoding": "gzip"}, content=b"no gzip"),
    "a closed connection": _closed,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_reply_that_cannot_be_used_names_the_sampler_and_leaves_nothing(
    fault: Fault, served: Any, tmp_path: Path
) -> None:
    cohort, _ = served(fault)
    with pytest.raises(SamplerError, match="vLLM") as caught:
        cohort.sample(PROMPTS, Decoding(2, 4), SEEDS)
    assert "3, 4" not in str(caught.value)  # the tokens of a prompt
    assert not list(tmp_path.iterdir())


def test_agreement_by_hand() -> None:
    def samples(*responses: SampledResponse) -> dict[str, ClientSamples]:
        return {"a": ClientSamples([list(responses)])}

    ours = samples(SampledResponse([1, 2], [-1.0, -2.0], False), SampledResponse([1, 2, 3], [-1.0, -2.0, -9.0], False))
    served_samples = samples(
        SampledResponse([1, 2], [-1.0, -2.5], False), SampledResponse([1, 4, 5], [-1.1, -2.2, 0.0], False)
    )
    result = agreement(ours, served_samples)
    assert (result.responses, result.parted, result.tokens) == (2, 1, 4)
    assert result.difference == pytest.approx(0.5)
    broken = samples(SampledResponse([1, 2], [float("nan"), -2.0], False), served_samples["a"].responses[0][1])
    assert agreement(ours, broken).difference == float("inf")


def _training(temperature: float = 1.0) -> tuple[Any, Any]:
    from fedrlvr.config import SamplingConfig, TrainConfig

    return TrainConfig(), SamplingConfig(temperature=temperature)

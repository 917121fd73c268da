"""A vLLM server for tests, as a transport of httpx: its API over a cohort of this process, with faults to order."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from fedrlvr.adapter import Adapter
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.policy.sampler import Decoding, SampleRequest
from fedrlvr.policy.stops import StopStrings

Fault = Callable[[dict[str, Any]], Any]


class FakeVllm:
    """Answers as vLLM does, from the adapters that it is given.

    cohort: the model that it draws from. loaded: adapters by name. requests: bodies of /v1/completions.
    fault: changes a reply of /v1/completions; it may return a whole response, or raise as httpx does.
    deaf: adapters are accepted and not used.
    """

    def __init__(self, cohort: Cohort, fault: Fault | None = None, *, deaf: bool = False) -> None:
        self.cohort, self.fault, self.deaf = cohort, fault, deaf
        self.loaded: dict[str, Adapter] = {}
        self.paths: list[Path] = []
        self.requests: list[dict[str, Any]] = []
        self._one_at_a_time = threading.Lock()

    @property
    def transport(self) -> httpx.MockTransport:
        """The network in which this server is all there is."""
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        match request.url.path:
            case "/health":
                return httpx.Response(200)
            case "/version":
                return httpx.Response(200, json={"version": "0.32.0"})
            case "/v1/load_lora_adapter":
                self.paths.append(Path(body["lora_path"]))
                self.loaded[body["lora_name"]] = load_peft(self.paths[-1])
                return httpx.Response(200, text="Success")
            case "/v1/unload_lora_adapter":
                del self.loaded[body["lora_name"]]
                return httpx.Response(200, text="Success")
        with self._one_at_a_time:  # requests come from several threads, and the cohort seats one client at a time
            self.requests.append(body)
            reply = self._completed(body)
        changed = self.fault(reply) if self.fault is not None else None
        return changed if isinstance(changed, httpx.Response) else httpx.Response(200, content=json.dumps(reply))

    def _completed(self, body: dict[str, Any]) -> dict[str, Any]:
        cohort = self.cohort
        adapter = cohort.fresh_adapter(0) if self.deaf else self.loaded[body["model"]]
        cohort.seat({"it": adapter})
        decoding = Decoding(body["n"], body["max_tokens"], body["temperature"], body["top_p"], body["top_k"])
        past_end = not body["stop_token_ids"]
        stops = StopStrings(body["stop"], cohort.base.plain) if body["stop"] else None
        request = SampleRequest(
            {"it": [body["prompt"]]},
            Decoding(
                *(getattr(decoding, name) for name in ("responses", "max_new_tokens", "temperature")), past_end=past_end
            ),
            {"it": body["seed"]},
            cohort.adapters,
            {},
            stops=stops,
        )
        (group,) = DecodeSampler(cohort.base, cohort.stack, cohort.engine).sample(request)["it"].responses
        return {
            "choices": [
                {
                    "index": i,
                    "token_ids": response.token_ids,
                    "logprobs": {"token_logprobs": response.logps},
                    "finish_reason": "stop" if response.finished else "length",
                }
                for i, response in enumerate(group)
            ]
        }

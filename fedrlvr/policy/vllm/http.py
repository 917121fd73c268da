"""Requests to a vLLM server, and the checks of its replies: nothing in them is trusted.

The API is vLLM 0.32's: OpenAI's `/v1/completions` with token ids in (`prompt`) and out (`return_token_ids`), and
`/v1/load_lora_adapter`, which a server has that was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fedrlvr.errors import SamplerError, printable

_CONNECT_S, _HEALTH_S = 10.0, 5.0
_MOST_TEXT = 300
_REPLY_BYTES, _TOKEN_BYTES = 1 << 20, 1 << 10
"""Bytes of a reply that are read at most: a constant, and for each token that was asked for. vLLM's own text of a token
with its id and log-prob takes about a hundred."""
LEAST_LOGP = -9000.0
"""vLLM writes -9999 for a log-prob of minus infinity, which no token that was drawn has."""
KEY = "VLLM_API_KEY"
"""The environment variable with the key of a server at `engine.vllm_address`, as vLLM itself calls it."""


class ServerGone(SamplerError):
    """The server does not answer, or closed the connection."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One response as the server gives it. stopped: it says that an end token or a stop string ended it."""

    token_ids: list[int]
    logps: list[float]
    stopped: bool


class VllmHttp:
    """A vLLM server by its address, or by the socket of one on this machine.

    No proxy of the environment is used, so that prompts go to that address and nowhere else. A request may take as long
    as the server computes; a connection that closes is an error at once.
    """

    def __init__(
        self, address: str, *, socket: Path | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """transport: replaces the network, in tests."""
        self.address = address if socket is None else f"unix:{socket}"
        key = os.environ.get(KEY) if socket is None else None
        self._http = httpx.Client(
            base_url=address,
            transport=transport or (httpx.HTTPTransport(uds=str(socket)) if socket is not None else None),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            # Each request has a connection of its own: one that is kept may be closed by the server, after 5 s in vLLM
            # 0.32, at the moment in which it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    def healthy(self) -> bool:
        """Whether the server answers that it is ready."""
        try:
            return self._http.get("/health", timeout=_HEALTH_S).status_code == 200
        except httpx.HTTPError:
            return False

    def version(self) -> str:
        """The version of vLLM that the server runs.

        Raises:
            SamplerError: as `complete`.
        """
        version = self._json("GET", "/version").get("version")
        if not isinstance(version, str) or not 0 < len(version) < 64:
            raise self._unusable("/version names no version")
        return printable(version)

    def load(self, name: str, directory: Path) -> None:
        """Load a PEFT adapter from a directory, under a name that is not in use.

        Raises:
            SamplerError: the server cannot load it, or as `complete`.
        """
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})

    def unload(self, name: str) -> None:
        """Forget an adapter; raises as `load`."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def complete(self, body: Mapping[str, Any], *, vocabulary: int) -> list[Completion]:
        """The responses to one prompt, in order.

        body: of /v1/completions, with `n` and `max_tokens`. vocabulary: token ids are below it.

        Raises:
            ServerGone: the server cannot be reached, or closed the connection.
            SamplerError: it refuses, or the reply is no JSON, lacks something, or has other numbers of responses,
                tokens or log-probs than it must have, a token outside of the vocabulary, or a log-prob that is none.
        """
        most = _REPLY_BYTES + _TOKEN_BYTES * body["n"] * body["max_tokens"]
        choices = self._json("POST", "/v1/completions", body, most=most).get("choices")
        if not isinstance(choices, list) or len(choices) != body["n"]:
            count = len(choices) if isinstance(choices, list) else "no"
            raise self._unusable(f"{count} responses to a prompt that was to get {body['n']}")
        by_place: dict[int, Completion] = {}
        for choice in choices:
            place = choice.get("index") if isinstance(choice, dict) else None
            if type(place) is not int or not 0 <= place < body["n"] or place in by_place:
                raise self._unusable("responses without an index of their own")
            by_place[place] = self._completion(choice, body["max_tokens"], vocabulary)
        return [by_place[place] for place in range(len(choices))]

    def _completion(self, choice: dict[str, Any], most: int, vocabulary: int) -> Completion:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise self._unusable("a response without token_ids; vLLM 0.32 gives them")
        if not 1 <= len(ids) <= most:
            raise self._unusable(f"a response of {len(ids)} tokens, where 1 to {most} were asked for")
        if not all(0 <= token < vocabulary for token in ids):
            raise self._unusable(f"a token outside of the model's vocabulary of {vocabulary}; it serves another model")
        logprobs = choice.get("logprobs")
        logps = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(logps, list) or len(logps) != len(ids):
            count = len(logps) if isinstance(logps, list) else "no"
            raise self._unusable(f"{count} log-probs of a response of {len(ids)} tokens")
        for value in logps:
            if type(value) not in (int, float) or not LEAST_LOGP < value < 1e-3:  # nan is neither
                raise self._unusable("a log-prob that is no number up to 0")
        return Completion(ids, [min(float(value), 0.0) for value in logps], choice.get("finish_reason") == "stop")

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, most: int = _REPLY_BYTES
    ) -> dict[str, Any]:
        response = self._ask(method, path, body, most=most)
        try:
            reply = response.json()
        except (ValueError, RecursionError):
            raise self._unusable(f"{path} gives no JSON") from None
        if not isinstance(reply, dict):
            raise self._unusable(f"{path} gives no JSON object")
        return reply

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, most: int = _REPLY_BYTES
    ) -> httpx.Response:
        """The response to a request, of which no more than `most` bytes are read."""
        try:
            with self._http.stream(method, path, json=None if body is None else dict(body)) as response:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if len(content) > most:
                        raise self._unusable(f"{path} gives more than {most:,} bytes")
        except httpx.HTTPError as error:
            raise ServerGone(
                f"The vLLM server at {self.address} does not answer ({type(error).__name__}). Start it again, then go "
                "on with `fedrlvr run --resume`."
            ) from None
        reply = httpx.Response(response.status_code, content=bytes(content))
        if reply.status_code != 200:
            raise SamplerError(
                f"The vLLM server at {self.address} refuses {path} with status {reply.status_code}: "
                f"{_reason(reply)}. {_ADVICE.get(path, 'Its log says why.')}"
            )
        return reply

    def _unusable(self, what: str) -> SamplerError:
        return SamplerError(
            f"The vLLM server at {self.address} gave what cannot be used: {what}. Check that it is vLLM 0.32 or newer "
            "and serves model.name, or set engine.sampler = 'loop'."
        )


_ADVICE = {
    "/v1/load_lora_adapter": (
        "A server of your own needs --enable-lora, a --max-lora-rank of at least lora.rank, "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and sight of engine.vllm_adapters."
    ),
    "/v1/completions": (
        "Where a prompt and its response are too long for the server, raise its --max-model-len or its memory "
        "(VLLM_CPU_KVCACHE_SPACE, --gpu-memory-utilization), or lower sampling.max_new_tokens."
    ),
}


def _reason(response: httpx.Response) -> str:
    """The server's own words, without lists: they may be a prompt's tokens."""
    try:
        error = response.json()["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str) or not text.strip():
        return "it gives no reason"
    words = re.sub(r"[\[{(][^\])}]*[\])}]?", "[...]", text.strip().splitlines()[0])
    return printable(words[:_MOST_TEXT]).rstrip(".")

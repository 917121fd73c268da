"""The sampler that lets a vLLM server draw the responses.

1. Each call hands the seated clients' adapters over, as PEFT directories, and takes them away again. Every one has a
   name and a path of its own, which are never used twice: vLLM keeps the keys and values of prompts by an adapter's
   name and path, so that a changed adapter under an old name and path would be given those of its former self. An
   adapter that was loaded in place of another would also be read again in every step of vLLM 0.32.
2. The log-probs are those that vLLM drew from (`processed_logprobs`), at the temperature. They are of the whole
   distribution unless top-p or top-k cut it; then a training pass of this process gives them. Hidden states always come
   from a pass of this process.
3. Each prompt has a seed of its own, made from its client's. Still two runs are not the same to the byte: vLLM rounds
   differently from batch to batch.
4. A server of ours that ends is started again, once a call.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.stacking import stack as stack_adapters
from fedrlvr.config import EngineConfig
from fedrlvr.errors import SamplerError
from fedrlvr.output import logger
from fedrlvr.policy.base import Base
from fedrlvr.policy.forward import autocast
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.peft_format import base_reference, save_peft
from fedrlvr.policy.replay import replayed_logps, replayed_states
from fedrlvr.policy.sampler import ClientSamples, Decoding, SampledResponse, SampleRequest
from fedrlvr.policy.stops import StopStrings
from fedrlvr.policy.vllm.http import Completion, ServerGone, VllmHttp
from fedrlvr.policy.vllm.server import SharedDirectory, StartedServer
from fedrlvr.seeds import stream

_log = logger("policy")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM accepts as --max-lora-rank."""
MOST_ROWS = 256
"""Responses side by side, vLLM's own default on a small device."""
GPU_SHARE = 0.4
"""Share of a GPU's memory that a started server takes, beside the training in this process."""
_REQUESTS = 256
_SERVERS: weakref.WeakValueDictionary[tuple[Any, ...], StartedServer] = weakref.WeakValueDictionary()
"""Servers of this process by what they were started with: the cohorts on one base model share one."""


class VllmSampler:
    """The `Sampler` of a vLLM server: one that this object starts when it is first needed, or one that runs.

    stack: the adapters of this process, for what is computed here; those sampled from are the request's.
    """

    rounds_otherwise = True

    def __init__(self, base: Base, stack: LoraStack, engine: EngineConfig, http: VllmHttp | None = None) -> None:
        """http: a server, instead of the one that the settings name."""
        # A server that is started works in a directory of its own.
        self.base, self.stack, self.engine = base, stack, engine.in_directory(Path.cwd())
        self._server: StartedServer | None = None
        self._http = http
        self._rank = 0
        self._version = ""
        self._told_of_stops = False
        if http is None and engine.vllm_address is not None:
            self._http = VllmHttp(engine.vllm_address)

    @property
    def description(self) -> str:
        """The server in words, with the setting that chose it."""
        place = f"at {self.engine.vllm_address}" if self._server is None else f"started with {self.engine.vllm_python}"
        return f"vLLM {self._version}, a server {place} (engine.sampler = 'vllm')"

    @property
    def server_pid(self) -> int | None:
        """Process id of the server, where this process has started one and it lives."""
        return None if self._server is None else self._server.pid

    def sample(self, request: SampleRequest) -> dict[str, ClientSamples]:
        """Have the server draw the responses, for all clients at once.

        Raises:
            DataError: a prompt and its longest response do not fit the model.
            ModelError: hidden states are wanted, and the model has no output head of which the input could be read.
            SamplerError: the server cannot be started, does not answer, or answers what cannot be used.
        """
        request.check_lengths(self.base.max_length)
        adapters = adapters_of(request)
        rank = max((adapter.rank for adapter in adapters.values()), default=1)
        try:
            drawn = self._drawn(self._ready(rank), request, adapters)
        except SamplerError as error:
            if self._server is None or not (isinstance(error, ServerGone) or self._server.dying()):
                raise
            _log.warning(
                "the vLLM server was lost while it was drawing responses, and is started again; its log, which may "
                "hold prompts, is %s (%s)",
                self._server.keep_log(),
                error,
            )
            self._server.stop()
            drawn = self._drawn(self._ready(rank), request, adapters)
        decoding, temperature = request.decoding, request.decoding.temperature or 1.0
        if decoding.temperature and (decoding.top_p < 1 or decoding.top_k):
            replayed_logps(self.base, self.stack, self.engine, request.prompts, drawn, temperature)
        states = (
            replayed_states(self.base, self.stack, self.engine, request.prompts, drawn) if request.hidden_states else {}
        )
        return {client: ClientSamples(drawn[client], states.get(client)) for client in request.prompts}

    def _drawn(
        self, http: VllmHttp, request: SampleRequest, adapters: Mapping[str, Adapter]
    ) -> dict[str, list[list[SampledResponse]]]:
        """The responses by client, prompt and draw, in their order."""
        decoding = request.decoding
        asked = [(client, p) for client, prompts in request.prompts.items() for p in range(len(prompts))]
        with self._handed_over(http, {client: adapters[client] for client, _ in asked}) as names:
            bodies = [
                self._body(
                    names[client],
                    request.prompts[client][p],
                    decoding,
                    seed=stream(request.seeds[client], "vllm", p),
                    stops=request.stops,
                )
                for client, p in asked
            ]
            groups = self._completed(http, bodies)
        drawn: dict[str, list[list[SampledResponse]]] = {client: [] for client in request.prompts}
        for (client, _), group in zip(asked, groups, strict=True):
            responses = [self._response(completion, decoding, request.stops) for completion in group]
            # A greedy response is asked for once: vLLM refuses several, and they would be the same.
            copies = decoding.responses if len(responses) < decoding.responses else 1
            drawn[client].append([_copy(response) for response in responses for _ in range(copies)])
        return drawn

    def _completed(self, http: VllmHttp, bodies: Sequence[Mapping[str, Any]]) -> list[list[Completion]]:
        """The responses to every request. The server has as many at once as it may decode side by side."""
        if not bodies:
            return []
        width = max(1, min(len(bodies), _REQUESTS, self.engine.decode_rows // bodies[0]["n"]))
        with ThreadPoolExecutor(width) as threads:
            futures = [threads.submit(http.complete, body, vocabulary=self.base.vocabulary) for body in bodies]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _body(
        self, adapter: str, prompt: Sequence[int], decoding: Decoding, *, seed: int, stops: StopStrings | None
    ) -> dict[str, Any]:
        """A request for the responses to one prompt. Nothing is left to the defaults of the server or the model."""
        return {
            "model": adapter,
            "prompt": list(prompt),
            "n": decoding.responses if decoding.temperature else 1,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p if decoding.temperature else 1.0,
            "top_k": decoding.top_k if decoding.temperature else 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,  # the model's own end tokens; those of fedrlvr, which are checked, are named instead
            "stop_token_ids": [] if decoding.past_end else sorted(self.base.eos_ids),
            "stop": list(stops.strings) if stops is not None else [],
            "include_stop_str_in_output": True,
        }

    def _response(self, completion: Completion, decoding: Decoding, stops: StopStrings | None) -> SampledResponse:
        """A response with its end where fedrlvr finds it.

        Raises:
            SamplerError: it is shorter than asked for, and does not say why.
        """
        ids, logps = completion.token_ids, completion.logps
        ends = [] if decoding.past_end else [i + 1 for i, token in enumerate(ids) if token in self.base.eos_ids][:1]
        if stops is not None and (end := stops.end(ids)) is not None:
            ends.append(end)
        if ends:
            return SampledResponse(ids[: min(ends)], logps[: min(ends)], True)
        if len(ids) < decoding.max_new_tokens:
            if not completion.stopped or stops is None:
                raise SamplerError(
                    f"The vLLM server ended a response after {len(ids)} of {decoding.max_new_tokens} tokens, without "
                    "an end token. Look into its log, or set engine.sampler = 'loop'."
                )
            if not self._told_of_stops:
                self._told_of_stops = True
                _log.warning("prompt.stop: vLLM sees a stop string where fedrlvr sees none; the response counts as cut")
        return SampledResponse(ids, logps, False)

    @contextmanager
    def _handed_over(self, http: VllmHttp, adapters: Mapping[str, Adapter]) -> Iterator[dict[str, str]]:
        """Hand adapters over, and give each client's name at the server. vLLM may read a directory until the end."""
        names = {client: f"fedrlvr-{secrets.token_hex(8)}" for client in adapters}
        parent = self.engine.vllm_adapters
        if parent is None and self._server is not None:
            parent = self._server.directory  # which goes with the server, even if this process is killed
        directory, loaded = SharedDirectory(parent), []
        try:
            for client, adapter in adapters.items():
                path = directory.path / names[client]
                save_peft(
                    adapter,
                    path,
                    base_name=base_reference(self.base.name),
                    fused_experts=self.base.fused_experts,
                )
                http.load(names[client], path)
                loaded.append(names[client])
            yield names
            for name in loaded:
                http.unload(name)
        finally:
            directory.remove()

    def _ready(self, rank: int) -> VllmHttp:
        """The server, started if it does not run, and again if an adapter has a larger rank than it takes."""
        python = self.engine.vllm_python
        if python is None:
            assert self._http is not None, "an address"
            self._version = self._version or self._http.version()
            return self._http
        rank = max(rank, self._rank, self.stack.rank)
        if rank > RANKS[-1]:
            raise SamplerError(
                f"vLLM takes adapters up to rank {RANKS[-1]}, and here one is of rank {rank} (lora.rank, or the change "
                "of the base weights of aggregation.type). Set engine.sampler = 'loop'."
            )
        self._rank = next(most for most in RANKS if most >= rank)
        arguments, threads = self._arguments(), torch.get_num_threads()
        key = (python, tuple(arguments), threads)
        server = _SERVERS.get(key)
        if server is None:
            server = StartedServer(python, arguments, threads=threads, offline=Path(self._model).is_dir())
            _SERVERS[key] = server
        self._server = server
        self._http = server.ready()
        self._version = self._http.version()
        return self._http

    @property
    def _model(self) -> str:
        name = base_reference(self.base.name)
        return str(Path(name).absolute()) if Path(name).is_dir() else name

    def _arguments(self) -> list[str]:
        with autocast(self.base, self.engine):
            kind = self.base.device.type
            cast = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if cast else self.base.model.dtype
        arguments = ["--model", self._model, "--dtype", str(dtype).removeprefix("torch.")]
        arguments += ["--max-model-len", "-1", "--max-num-seqs", str(min(self.engine.decode_rows, MOST_ROWS))]
        arguments += ["--enable-lora", "--max-loras", str(self.engine.vllm_max_loras)]
        arguments += ["--max-lora-rank", str(self._rank), "--generation-config", "vllm"]
        arguments += ["--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log", "--disable-log-stats"]
        if kind == "cpu":
            # A prompt that is computed in parts draws a token that is thrown away, and vLLM 0.32 then rewinds the
            # request's generator, which a CPU's cannot: the engine would die of the first such request with a seed.
            arguments += ["--enforce-eager", "--no-enable-chunked-prefill"]
        else:
            arguments += ["--gpu-memory-utilization", str(GPU_SHARE)]
        return [*arguments, *self.engine.vllm_arguments]


def adapters_of(request: SampleRequest) -> dict[str, Adapter]:
    """Each client's adapter together with the change of its base weights, as one adapter of their ranks' sum."""
    return {
        client: stack_adapters([(adapter, 1.0), (request.changes[client], 1.0)])
        if client in request.changes
        else adapter
        for client, adapter in request.adapters().items()
    }


def _copy(response: SampledResponse) -> SampledResponse:
    return SampledResponse(list(response.token_ids), list(response.logps), response.finished)

"""The cohort: K clients whose adapters lie stacked on one frozen base model.

A deployed organisation is a cohort of one, a simulation a cohort of everyone; there is one code path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.coordination.ratio import reference
from fedrlvr.errors import ModelError, SamplerError
from fedrlvr.out_of_memory import LOADING, PLACING, SAMPLING, TRAINING, memory_limit
from fedrlvr.output import logger
from fedrlvr.policy.base import Base
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.forward import autocast, text_logps
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.learner import Learner, StepStats, suitable_tokens
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.model_check import in_one_line
from fedrlvr.policy.sampler import Agreement, Decoding, Sampler, SampleRequest, agreement
from fedrlvr.rl import Group, Response
from fedrlvr.tasks import Question

_log = logger("policy")
CHECK_PROMPTS = ("1 + 1 =", "What is 12 + 345? Add the ones first, then the tens, then the hundreds.")
CHECK_TOKENS = 4
"""Number of tokens with which `Cohort.self_check` has each of the prompts above answered."""


COMPARED_TOKENS, LONG_PROMPT = 12, 150
"""Tokens of a greedy response with which two samplers are compared, and of the longest prompt: vLLM's cache has blocks
of up to 128 tokens, and only whole ones are shared between requests."""


def sampler_of(base: Base, stack: LoraStack, engine: EngineConfig) -> Sampler:
    """The sampler that `engine.sampler` names; a new one is a line here."""
    if engine.sampler == "vllm":
        from fedrlvr.policy.vllm.sampler import VllmSampler

        return VllmSampler(base, stack, engine)
    return DecodeSampler(base, stack, engine)


class Cohort:
    """Clients seated on a base model: sample for all of them, update all of them.

    Every method takes and gives mappings by client name; the client axis stays inside.
    """

    def __init__(self, base: Base, lora: LoraConfig, engine: EngineConfig) -> None:
        self.base = base
        self.engine = engine
        cannot = f"{type(base.model).__name__} cannot take adapters on lora.targets"
        with self._memory_in_loading(), in_one_line(base.name, cannot):
            self.stack = LoraStack(base.model, lora)
        if lora.targets == "all-linear" and base.fused_experts:
            _log.warning(
                "%s: the routed experts of this model are no linear layers, so lora.targets = 'all-linear' leaves them "
                "out; attention, shared experts and dense layers are adapted",
                base.name,
            )
        self.sampler = sampler_of(base, self.stack, engine)
        self.agreement: Agreement | None = None
        """How far a sampler that is another program agrees with the decode loop, after `self_check`."""
        self.clients: list[str] = []
        self._changes: Mapping[str, Adapter] = {}
        self._learner: Learner | None = None
        self._sampling = SamplingConfig()

    def fresh_adapter(self, seed: int) -> Adapter:
        """An adapter that leaves the base model as it is."""
        return self.stack.fresh(seed)

    def seat(self, adapters: Mapping[str, Adapter], changes: Mapping[str, Adapter] | None = None) -> None:
        """Make these clients, with copies of these adapters, the cohort. Their ranks may differ.

        changes: by client what is added to its base weights, frozen, (alpha / rank) B A; one object for clients of one
        federation, which is then held once. The reference policy is without it.

        Raises:
            AdapterError: a change of a layer that is not adapted, or that does not fit it.
        """
        changes = changes or {}
        self._learner = None
        rank = max((adapter.rank for adapter in adapters.values()), default=0)
        with memory_limit(PLACING, {"lora.rank": rank, **self._shared(len(adapters))}):
            self.stack.seat(list(adapters.values()), [changes.get(client) for client in adapters])
        self.clients = list(adapters)
        self._changes = {client: changes[client] for client in adapters if client in changes}

    def begin_training(
        self,
        train: TrainConfig,
        sampling: SamplingConfig,
        moments: Mapping[str, dict[str, torch.Tensor]] | None = None,
        anchors: Mapping[str, Adapter] | None = None,
        trains: Halves = "AB",
        *,
        scale_free: bool = False,
    ) -> None:
        """Train the seated clients from their adapters on.

        moments: optimizer states to go on with, by client. anchors: the adapters the round began with (FedProx), if
        they are not those seated now. trains: both factors, or one of them while the other is frozen: it has no
        gradient, decay or pull, and its moments stay as they are. scale_free: as for `StackedAdamW`.
        """
        self._sampling = sampling
        with self._memory_in_training():
            self.stack.train(trains)
            self._learner = Learner(
                self.base,
                self.stack,
                train,
                self.engine,
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                anchors=self.stack.stacked([anchors[client] for client in self.clients]) if anchors else (),
            )
            self._learner.optimizer.scale_free = scale_free
            for client, state in (moments or {}).items():
                self._learner.optimizer.restore(self.clients.index(client), state)

    def sample(
        self,
        prompts: Mapping[str, Sequence[Sequence[int]]],
        decoding: Decoding,
        seeds: Mapping[str, int],
        states: dict[str, HiddenStates] | None = None,
    ) -> dict[str, list[list[Response]]]:
        """Responses by client, prompt and draw. Clients without prompts get an empty list.

        states: filled by client with the hidden states of the prompts and responses, in their order, without another
        forward pass; clients without prompts get [0, H] and [0, G, H].

        Raises:
            DataError: a prompt and its longest response do not fit the model.
            ModelError: states are asked for, and the sampler cannot give them.
            MemoryLimitError: memory ran out.
        """
        request = self._request(prompts, decoding, seeds, hidden_states=states is not None)
        with self._memory_in_sampling(decoding):
            samples = self.sampler.sample(request)
        if states is not None:
            for client, of_client in samples.items():
                assert of_client.hidden_states is not None, "a sampler gives the hidden states it is asked for"
                states[client] = of_client.hidden_states
        decode = self.base.decode
        return {
            client: [
                [Response(r.token_ids, r.logps, decode(r.token_ids), r.finished) for r in group]
                for group in samples[client].responses
            ]
            for client in self.clients
        }

    def _request(
        self,
        prompts: Mapping[str, Sequence[Sequence[int]]],
        decoding: Decoding,
        seeds: Mapping[str, int],
        *,
        hidden_states: bool = False,
    ) -> SampleRequest:
        return SampleRequest(
            prompts={client: prompts.get(client, ()) for client in self.clients},
            decoding=decoding,
            seeds={client: seeds.get(client, 0) for client in self.clients},
            adapters=self.adapters,
            changes=self._changes,
            hidden_states=hidden_states,
            stops=None if decoding.past_end else self.base.stops,
        )

    def correct(
        self,
        prompts: Mapping[str, Sequence[Sequence[int]]],
        drawn: Mapping[str, Sequence[Sequence[Response]]],
        cap: float,
    ) -> None:
        """Make responses that were just drawn ready for training, where their log-probs are not the training pass's.

        A training pass scores them where `engine.sampled_logps` is off, or where the sampler is another program. Then
        ratios are p / p_old, and each token weighs min(p_old / q, cap) in the loss, with q as the sampler drew it
        (`truncated` in coordination/ratio.py). cap: `train.ratio_cap`.

        Raises:
            SamplerError: the log-probs differ so much that the adapters cannot have reached the sampler.
            MemoryLimitError: memory ran out.
        """
        if self.engine.sampled_logps and not self.sampler.rounds_otherwise:
            return
        responses = [response for groups in drawn.values() for group in groups for response in group]
        sampled = [response.logps for response in responses]
        self.rescore(prompts, drawn)
        if not self.sampler.rounds_otherwise:
            return
        gaps = [
            abs(p - q) for r, logps in zip(responses, sampled, strict=True) for p, q in zip(r.logps, logps, strict=True)
        ]
        if not (mean := math.fsum(gaps) / max(len(gaps), 1)) < self._tolerance:
            raise SamplerError(
                f"engine.sampler = {self.engine.sampler!r}: the log-probs of what it drew differ from those of the "
                f"policy by {mean:.3g} on average (limit {self._tolerance:g}), so it drew from something else. Resume "
                "the run, which starts with a check, or set engine.sampler = 'loop'."
            )
        if not self.engine.sampled_logps:
            return
        for response, logps in zip(responses, sampled, strict=True):
            count = len(response.token_ids)
            truncated = reference("truncated", tokens=count, local_logps=response.logps, sender_logps=logps, cap=cap)
            response.weights = truncated.weights

    @property
    def _tolerance(self) -> float:
        """Largest accepted difference between two computations of a log-prob."""
        return 1e-3 if self.base.model.dtype == torch.float32 else 0.25

    def rescore(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], drawn: Mapping[str, Sequence[Sequence[Response]]]
    ) -> None:
        """Let a training pass set the log-probs of these responses to those of the policy as it is now.

        Of others' responses to public problems, and of one's own as `correct` says.
        """
        with self._memory_in_training():
            self._training().rescore([prompts.get(c, ()) for c in self.clients], [drawn[c] for c in self.clients])

    def learn(self, groups: Mapping[str, Sequence[Group]], rates: Mapping[str, float]) -> dict[str, StepStats]:
        """One optimizer step of every seated client.

        Raises:
            MemoryLimitError: memory ran out; the base model is as it was.
        """
        learner = self._training()
        try:
            with self._memory_in_training():
                stats = learner.step([groups[c] for c in self.clients], [rates[c] for c in self.clients])
        finally:  # a worker samples from the same model for its next message, whatever happened
            self.stack.spans = None
            self.base.model.eval()
        return dict(zip(self.clients, stats, strict=True))

    def kl_to_base(self, groups: Mapping[str, Sequence[Group]]) -> dict[str, float]:
        """Per client the mean k3 per token between the policy that sampled these groups and the base model.

        Of the first responses of each group (`KL_RESPONSES`); needs `begin_training`.
        """
        with self._memory_in_training():
            values = self._training().kl_to_base([groups[c] for c in self.clients])
        return dict(zip(self.clients, values, strict=True))

    @torch.no_grad()
    def text_loss(self, client: str, windows: Sequence[Sequence[int]]) -> float:
        """Mean negative log-likelihood, in nats, of the windows' tokens under a seated client's policy.

        Each token is predicted from those before it in its window; a window's first token is not.

        Raises:
            MemoryLimitError: memory ran out.
        """
        place, total, tokens = self.clients.index(client), 0.0, 0
        with self._memory_in_training():
            for window in windows:
                ids_T = torch.tensor(window, device=self.base.device)
                self.stack.spans = [(place, 0, len(window))]
                try:
                    logps_N = text_logps(self.base, ids_T, self.engine)
                finally:
                    self.stack.spans = None
                total, tokens = total - float(logps_N.double().sum()), tokens + len(logps_N)
        return total / tokens

    def adapters(self) -> dict[str, Adapter]:
        """Copies of the seated clients' adapters, each at its own rank, without changes of the base weights."""
        return dict(zip(self.clients, self.stack.unseat(), strict=True)) if self.clients else {}

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Optimizer states of the seated clients, by name."""
        optimizer = self._training().optimizer
        return {client: optimizer.state(i) for i, client in enumerate(self.clients)}

    def self_check(self, seed: int = 0) -> None:
        """Assert that what is sampled, trained and exported is one policy, once, before anything else is done.

        A model whose layers are bypassed, or a cache that disagrees with the full forward pass, trains on noise without
        any error; trainers have shipped with both. Two clients, one of them with a perturbed adapter, answer two
        prompts of unequal length in one batch. The log-probs of the decode loop must be those of the training pass, and
        those that the model gives each text alone, as plain transformers runs it. A gradient must reach the adapters.
        Cost: some ten forward passes of a few tokens, and one backward.

        Raises:
            ModelError: one of these does not hold, or the architecture fails in one of the passes.
            SamplerError: the sampler is another program, and does not draw what the decode loop does.
            MemoryLimitError: memory ran out.
        """
        base, kind = self.base, type(self.base.model).__name__
        cannot = f"{kind} is not an architecture that fedrlvr can train"
        with self._memory_in_loading(), in_one_line(base.name, cannot):
            prompts = [ids[: max(1, base.max_length - CHECK_TOKENS)] for ids in base.encode_all(CHECK_PROMPTS)]
            plain, moved = self.fresh_adapter(seed), self.fresh_adapter(seed)
            generator = torch.Generator().manual_seed(seed)
            for factors in moved.layers.values():
                factors.B.normal_(std=0.5 / factors.B.shape[0] ** 0.5, generator=generator)
            self.seat({"plain": plain, "moved": moved})
            self.begin_training(TrainConfig(), SamplingConfig())
            of_client = dict.fromkeys(self.clients, prompts)
            decoding = Decoding(responses=2, max_new_tokens=CHECK_TOKENS, past_end=True)
            drawn = self.sample(of_client, decoding, dict.fromkeys(self.clients, seed))
            if drawn["plain"][0][0].logps == drawn["moved"][0][0].logps:
                if self.sampler.rounds_otherwise:
                    raise SamplerError(
                        f"engine.sampler = {self.engine.sampler!r}: a perturbed adapter does not change what "
                        f"{self.sampler.description} draws, so adapters do not reach it. Correct the server, or set "
                        "engine.sampler = 'loop'."
                    )
                raise ModelError(
                    f"{base.name}: a perturbed adapter does not change what the model samples, so training would have "
                    "no effect. Its architecture bypasses the adapted layers; set lora.targets to layers it uses."
                )
            learner = self._training()
            gaps = {
                "the training pass": learner.logp_gap([drawn[client] for client in self.clients], prompts),
                "the model alone, without cache or padding,": max(
                    self._gap_alone(i, ids, group[0])
                    for i, client in enumerate(self.clients)
                    for ids, group in zip(prompts, drawn[client], strict=True)
                ),
            }
            for other, gap in gaps.items():
                if not gap < self._tolerance:
                    raise ModelError(
                        f"{base.name}: log-probs of {self.sampler.description} differ from those of {other} by "
                        f"{gap:.3g} (limit {self._tolerance:g}); {self._advice}"
                    )
            question = Question(CHECK_PROMPTS[0], "start-up check", "start-up check", "exact")
            stats = self.learn(
                {
                    client: [Group(question, prompts[0], drawn[client][0], advantages=[1.0, -0.5])]
                    for client in self.clients
                },
                dict.fromkeys(self.clients, 0.0),
            )
            if not all(0 < of_client.grad_norm < math.inf for of_client in stats.values()):
                raise ModelError(
                    f"{base.name}: no usable gradient reaches the adapters; training would have no effect."
                )

        if self.sampler.rounds_otherwise:
            self._compare_samplers(plain, moved, prompts)

    @property
    def _advice(self) -> str:
        if self.sampler.rounds_otherwise:
            return "it computes in another number format, or serves another model. Set engine.sampler = 'loop'."
        return "this architecture's cache or masking is not one fedrlvr can train."

    def _compare_samplers(self, plain: Adapter, moved: Adapter, prompts: Sequence[Sequence[int]]) -> None:
        """Hold a sampler that is another program against the decode loop, with greedy responses.

        Two clients then exchange their adapters and are asked once more: a sampler that keeps an adapter, or what it
        has computed for a prompt with it, is found out. One prompt is longer than a block of vLLM's cache.

        Raises:
            SamplerError: a log-prob differs by more than rounding does.
        """
        room = self.base.max_length - COMPARED_TOKENS
        longer = list(prompts[-1]) * (1 + LONG_PROMPT // len(prompts[-1]))
        asked = [list(ids)[: max(1, room)] for ids in (*prompts, longer[:LONG_PROMPT])]
        decoding = Decoding(responses=1, max_new_tokens=COMPARED_TOKENS, temperature=0.0, past_end=True)
        loop, compared = DecodeSampler(self.base, self.stack, self.engine), []
        for adapters in ({"plain": plain, "moved": moved}, {"plain": moved, "moved": plain}):
            self.seat(adapters)
            request = self._request(dict.fromkeys(self.clients, asked), decoding, dict.fromkeys(self.clients, 0))
            compared.append(agreement(loop.sample(request), self.sampler.sample(request)))
        first, second = compared
        self.agreement = first + second
        if not self.agreement.difference < self._tolerance:
            raise SamplerError(
                f"engine.sampler = {self.engine.sampler!r}: {self.sampler.description} draws from another policy than "
                f"the decode loop: {self.agreement} (limit {self._tolerance:g}). Adapters do not reach it, or it "
                "serves another model or number format. Correct the server, or set engine.sampler = 'loop'."
            )

    @torch.no_grad()
    def _gap_alone(self, client: int, prompt_ids: Sequence[int], response: Response) -> float:
        """Largest difference of a response's log-probs from those that the model gives prompt and response alone."""
        ids = torch.tensor([[*prompt_ids, *response.token_ids[:-1]]], device=self.base.device)
        self.stack.spans = [(client, 0, ids.shape[1])]
        try:
            with autocast(self.base, self.engine):
                logits = self.base.model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 :]
        finally:
            self.stack.spans = None
        logps = logits.float().log_softmax(dim=-1).cpu()
        expected = logps[torch.arange(len(response.token_ids)), torch.tensor(response.token_ids)]
        return float((expected - torch.tensor(response.logps)).abs().max())

    def _shared(self, clients: int) -> dict[str, Any]:
        """The setting by which clients share a batch, where several do."""
        return {"engine.cohort": True} if clients > 1 and self.engine.cohort else {}

    def _memory_in_loading(self) -> AbstractContextManager[None]:
        dtype = str(self.base.model.dtype).removeprefix("torch.")
        return memory_limit(LOADING, {"model.dtype": dtype, "model.name": self.base.name})

    def _memory_in_sampling(self, decoding: Decoding) -> AbstractContextManager[None]:
        rows, least = self.engine.decode_rows, len(self.clients) * decoding.responses
        settings = {"sampling.group_size": decoding.responses, "sampling.max_new_tokens": decoding.max_new_tokens}
        if rows > least:  # a problem of each client is decoded at once in any case
            settings["engine.decode_rows"] = rows
        return memory_limit(SAMPLING, settings | self._shared(len(self.clients)))

    def _memory_in_training(self) -> AbstractContextManager[None]:
        settings = {
            "engine.micro_batch_tokens": self.engine.micro_batch_tokens or suitable_tokens(self.base),
            "model.gradient_checkpointing": self.base.checkpointing,
            "lora.rank": max(self.stack.ranks, default=self.stack.rank),
            "sampling.group_size": self._sampling.group_size,
        }
        return memory_limit(TRAINING, settings | self._shared(len(self.clients)))

    def _training(self) -> Learner:
        if self._learner is None:
            raise ModelError("begin_training first")
        return self._learner

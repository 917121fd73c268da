"""The cohort: K clients whose adapters lie stacked on one frozen base model.

A deployed organisation is a cohort of one, a simulation a cohort of everyone; there is one code path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy.base import Base
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.learner import Learner, StepStats
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.sampler import Decoding, Sampler, SampleRequest
from fedrlvr.rl import Group, Response


class Cohort:
    """Clients seated on a base model: sample for all of them, update all of them.

    Every method takes and gives mappings by client name; the client axis stays inside.
    """

    def __init__(self, base: Base, lora: LoraConfig, engine: EngineConfig) -> None:
        self.base = base
        self.engine = engine
        self.stack = LoraStack(base.model, lora)
        self.sampler: Sampler = DecodeSampler(base, self.stack, engine)
        """Another sampler (policy/sampler.py) takes its place in this line."""
        self.clients: list[str] = []
        self._changes: Mapping[str, Adapter] = {}
        self._learner: Learner | None = None

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
        self.stack.seat(list(adapters.values()), [changes.get(client) for client in adapters])
        self.clients = list(adapters)
        self._changes = {client: changes[client] for client in adapters if client in changes}
        self._learner = None

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
        """
        samples = self.sampler.sample(
            SampleRequest(
                prompts={client: prompts.get(client, ()) for client in self.clients},
                decoding=decoding,
                seeds={client: seeds.get(client, 0) for client in self.clients},
                adapters=self.adapters,
                changes=self._changes,
                hidden_states=states is not None,
            )
        )
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

    def rescore(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], drawn: Mapping[str, Sequence[Sequence[Response]]]
    ) -> None:
        """Let a training pass set the log-probs of these responses to those of the policy as it is now.

        Of others' responses to public problems, and of one's own where `engine.sampled_logps` is off.
        """
        self._training().rescore([prompts[c] for c in self.clients], [drawn[c] for c in self.clients])

    def learn(self, groups: Mapping[str, Sequence[Group]], rates: Mapping[str, float]) -> dict[str, StepStats]:
        """One optimizer step of every seated client."""
        stats = self._training().step([groups[c] for c in self.clients], [rates[c] for c in self.clients])
        return dict(zip(self.clients, stats, strict=True))

    def kl_to_base(self, groups: Mapping[str, Sequence[Group]]) -> dict[str, float]:
        """Per client the mean k3 per token between the policy that sampled these groups and the base model.

        Of the first responses of each group (`KL_RESPONSES`); needs `begin_training`.
        """
        values = self._training().kl_to_base([groups[c] for c in self.clients])
        return dict(zip(self.clients, values, strict=True))

    def adapters(self) -> dict[str, Adapter]:
        """Copies of the seated clients' adapters, each at its own rank, without changes of the base weights."""
        return dict(zip(self.clients, self.stack.unseat(), strict=True)) if self.clients else {}

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """The seated clients' optimizer states."""
        optimizer = self._training().optimizer
        return {client: optimizer.state(i) for i, client in enumerate(self.clients)}

    def self_check(self, prompt_ids: Sequence[int], seed: int) -> None:
        """Assert that adapters reach the sampler, once, before anything is spent on training.

        A model whose layers are bypassed, or a cache that disagrees with the full forward pass, trains on noise without
        any error; trainers have shipped with both.

        Raises:
            ModelError: a perturbed adapter does not move the sampled log-probs, or those of the decode loop are not
                those of the training pass.
        """
        plain = self.fresh_adapter(seed)
        moved = self.fresh_adapter(seed)
        generator = torch.Generator().manual_seed(seed)
        for factors in moved.layers.values():
            factors.B.normal_(std=0.5 / factors.B.shape[0] ** 0.5, generator=generator)
        self.seat({"plain": plain, "moved": moved})
        self.begin_training(TrainConfig(), SamplingConfig())
        decoding = Decoding(responses=2, max_new_tokens=4)
        prompts = {client: [list(prompt_ids)] for client in self.clients}
        drawn = self.sample(prompts, decoding, dict.fromkeys(self.clients, seed))
        first = {client: drawn[client][0][0] for client in self.clients}
        if first["plain"].logps == first["moved"].logps:
            raise ModelError(
                f"{self.base.name}: a perturbed adapter does not change what the model samples, so training would have "
                "no effect. Its architecture bypasses the adapted layers; set lora.targets to layers it uses."
            )
        gap = self._training().logp_gap([drawn[client][0] for client in self.clients], prompt_ids)
        limit = 1e-3 if self.base.model.dtype == torch.float32 else 0.25
        if not gap < limit:
            raise ModelError(
                f"{self.base.name}: log-probs of the decode loop differ from those of the training pass by {gap:.3g} "
                f"(limit {limit:g}); this architecture's cache or masking is not one fedrlvr can train."
            )

    def _training(self) -> Learner:
        if self._learner is None:
            raise ModelError("begin_training first")
        return self._learner

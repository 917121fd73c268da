"""One optimizer step of a whole cohort: log-probs of the responses, the loss of each client, its gradient, its update.

A batch is cut into micro-batches whose gradients are summed, each client's sum divided by its own normaliser; so the
gradient does not depend on the cut. Responses with zero advantage are left out (their gradient is zero) unless a KL
term gives them one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedrlvr.config import EngineConfig, TrainConfig
from fedrlvr.policy.base import Base
from fedrlvr.policy.batches import MicroBatch, Pack, Row, micro_batches, packs_of
from fedrlvr.policy.forward import heads_apart, response_logps
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.optimizer import StackedAdamW
from fedrlvr.rl import Group, Origin, Response, k3, normaliser, ratio_sums, response_losses

# Most logits held at once of a model whose logits cannot be made in chunks: 1 GiB.
MAX_LOGITS = 1 << 28
CPU_ACTIVATIONS = 1 << 23
"""Tokens x layers x width of a CPU's micro-batch; what a layer keeps for the backward pass is some 30 times as much."""
KL_RESPONSES = 2
"""Responses of each group that `kl_to_base` looks at."""


@dataclass(frozen=True)
class StepStats:
    """Statistics of one update of one client.

    ratios: of all trained tokens. foreign: of the tokens of other clients' responses alone; None where there were none.
    """

    loss: float
    grad_norm: float
    ratios: Ratios
    foreign: Ratios | None = None


@dataclass(frozen=True)
class Ratios:
    """Policy ratios of some tokens: their mean, the largest, and the share whose clip is active; nan without tokens."""

    tokens: int
    mean: float
    largest: float
    clipped: float


class Learner:
    """Updates the adapters seated on a stack. Made anew whenever clients are seated.

    anchors: the round's adapters as `LoraStack.stacked` gives them, if they are not those seated now.
    """

    def __init__(
        self,
        base: Base,
        stack: LoraStack,
        config: TrainConfig,
        engine: EngineConfig,
        *,
        temperature: float,
        max_tokens: int,
        anchors: Sequence[Tensor] = (),
    ) -> None:
        self.base = base
        self.stack = stack
        self.config = config
        self.engine = engine
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.optimizer = StackedAdamW(stack.parameters(), config, stack.ranks)
        # FedProx pulls towards the round's adapters: those seated when the round began.
        anchors = anchors or stack.parameters()
        self.anchors = [anchor.detach().clone() for anchor in anchors] if config.proximal_mu else []

    def step(self, groups: Sequence[Sequence[Group]], rates: Sequence[float]) -> list[StepStats]:
        """One optimizer step of every client on its own groups, at its own learning rate."""
        config = self.config
        keep_zero = config.kl_beta > 0 or not self.engine.skip_zero_advantage
        packs = [packs_of(i, client, keep_zero=keep_zero) for i, client in enumerate(groups)]
        norms = [
            normaliser(
                config.loss,
                responses=sum(len(group.responses) for group in client),
                tokens=sum(len(response.token_ids) for group in client for response in group.responses),
                max_tokens=self.max_tokens,
            )
            for client in groups
        ]
        clients = len(groups)
        norms_K = torch.tensor(norms, device=self.base.device)
        losses_K = torch.zeros(clients, device=self.base.device)
        # Sum, largest and clipped of the policy ratios, of all responses and of foreign ones.
        sums_2K3 = torch.zeros(2, clients, 3, device=self.base.device)
        settings: dict[str, Any] = {name: getattr(config, name) for name in ("loss", "clip_low", "clip_high")}
        self.optimizer.zero_grad()
        self.base.model.train(self.base.checkpointing)
        for batch in self._batches([pack for client in packs for pack in client]):
            reference_RT = None
            if config.kl_beta:
                with torch.no_grad(), self.stack.off():
                    reference_RT = self._logps(batch)
            tensors = self._logps(batch), batch.behaviour_RT, batch.advantages_R, batch.mask_RT
            losses_R = response_losses(
                *tensors,
                reference_logps_BT=reference_RT,
                kl_beta=config.kl_beta,
                weights_BT=batch.weights_RT,
                shaping_B=batch.shaping_R,
                **settings,
            )
            losses_R = losses_R / norms_K[batch.client_R]
            losses_R.sum().backward()
            sums_R3 = ratio_sums(*tensors, shaping_B=batch.shaping_R, **settings)
            losses_K.index_add_(0, batch.client_R, losses_R.detach())
            _add_ratios(sums_2K3[0], batch.client_R, sums_R3)
            if batch.foreign_R is not None:
                _add_ratios(sums_2K3[1], batch.client_R[batch.foreign_R], sums_R3[batch.foreign_R])
        self.stack.spans = None
        self.base.model.eval()
        self._pull_to_anchor()
        grad_norms_K = self.optimizer.clip()
        self.optimizer.step(rates)
        every, foreign = sums_2K3.tolist()
        stats = []
        for i, client in enumerate(packs):
            responses = [row.response for pack in client for row in pack.rows]
            tokens = sum(len(response.token_ids) for response in responses)
            foreign_tokens = sum(len(r.token_ids) for r in responses if r.origin is Origin.FOREIGN)
            ratios, foreign_ratios = (
                _ratios(every[i], tokens),
                _ratios(foreign[i], foreign_tokens) if foreign_tokens else None,
            )
            stats.append(StepStats(float(losses_K[i]), float(grad_norms_K[i]), ratios, foreign_ratios))
        return stats

    def _batches(self, packs: Sequence[Pack]) -> Iterator[MicroBatch]:
        """Micro-batches one after another; the stack knows whose the tokens of the one at hand are."""
        budget = self.engine.micro_batch_tokens or suitable_tokens(self.base)
        if self.engine.response_logits and not heads_apart(self.base):
            budget = min(budget, MAX_LOGITS // self.base.model.get_input_embeddings().num_embeddings)
        for batch in micro_batches(
            packs,
            budget,
            self.base.pad_id,
            self.base.device,
            packed=self.base.packs,
            shared=self.engine.shared_prefix,
            by_length=self.engine.by_length,
        ):
            self.stack.spans = batch.spans
            try:
                yield batch
            finally:
                self.stack.spans = None

    def _logps(self, batch: MicroBatch) -> Tensor:
        return response_logps(self.base, batch, self.temperature, self.engine)

    def _pull_to_anchor(self) -> None:
        """Add the gradient of (mu / 2) || adapter - anchor ||^2 (FedProx, arXiv 1812.06127) to what is trained."""
        for parameter, anchor in zip(self.stack.parameters(), self.anchors, strict=False):
            if not parameter.requires_grad:
                continue
            pull = self.config.proximal_mu * (parameter.detach() - anchor)
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull

    @torch.no_grad()
    def kl_to_base(self, groups: Sequence[Sequence[Group]]) -> list[float]:
        """Per client the mean k3 per token between the policy that sampled these groups and the base model.

        Estimated on the first KL_RESPONSES of each group: nothing depends on it, and all of them would cost half of a
        step.
        """
        packs = [packs_of(i, _first_responses(client), keep_zero=True) for i, client in enumerate(groups)]
        sums_K = torch.zeros(len(groups), device=self.base.device)
        for batch in self._batches([pack for client in packs for pack in client]):
            with self.stack.off():
                tokens_RT = k3(batch.behaviour_RT, self._logps(batch)) * batch.mask_RT
            sums_K.index_add_(0, batch.client_R, tokens_RT.sum(dim=1))
        counts = [sum(len(row.token_ids) for pack in client for row in pack.rows) for client in packs]
        return [float(total) / count if count else 0.0 for total, count in zip(sums_K, counts, strict=True)]

    @torch.no_grad()
    def rescore(
        self, prompts: Sequence[Sequence[Sequence[int]]], drawn: Sequence[Sequence[Sequence[Response]]]
    ) -> None:
        """Set every response's log-probs to those of a training pass of the policy as it is now.

        prompts: token ids by client and prompt; drawn: responses by client, prompt and draw.
        """
        packs = [
            Pack(i, prompt_ids, rows)
            for i, (ids, groups) in enumerate(zip(prompts, drawn, strict=True))
            for prompt_ids, responses in zip(ids, groups, strict=True)
            if (rows := [Row(response, 0.0) for response in responses if response.token_ids])
        ]
        for batch in self._batches(packs):
            for row, logps in zip(batch.rows, self._logps(batch).tolist(), strict=True):
                row.response.logps = logps[: len(row.token_ids)]

    @torch.no_grad()
    def logp_gap(self, responses: Sequence[Sequence[Sequence[Response]]], prompts: Sequence[Sequence[int]]) -> float:
        """Largest difference between the log-probs taken at sampling and those of the training pass.

        responses: by client, prompt and draw. prompts: token ids, the same for every client.
        """
        packs = [
            Pack(i, ids, [Row(response, 0.0) for response in group])
            for i, client in enumerate(responses)
            for ids, group in zip(prompts, client, strict=True)
        ]
        gap = 0.0
        for batch in self._batches(packs):
            difference_RT = (self._logps(batch) - batch.behaviour_RT) * batch.mask_RT
            gap = max(gap, float(difference_RT.abs().max())) if not bool(difference_RT.isnan().any()) else math.nan
        return gap


def _add_ratios(sums_K3: Tensor, client_R: Tensor, sums_R3: Tensor) -> None:
    """Add responses' ratio sums, largest ratios and clipped tokens to their clients'."""
    sums_K3[:, 0].index_add_(0, client_R, sums_R3[:, 0])
    sums_K3[:, 1].scatter_reduce_(0, client_R, sums_R3[:, 1], "amax")
    sums_K3[:, 2].index_add_(0, client_R, sums_R3[:, 2])


def _ratios(sums: Sequence[float], tokens: int) -> Ratios:
    if not tokens:
        return Ratios(0, math.nan, math.nan, math.nan)
    return Ratios(tokens, sums[0] / tokens, sums[1], sums[2] / tokens)


def suitable_tokens(base: Base) -> int:
    """Tokens of a micro-batch where the config does not say."""
    if base.device.type != "cpu":
        return 16384
    # More than a thousand leave a CPU's cache; of a larger model fewer do, and their activations would fill the memory.
    text = base.model.config.get_text_config()
    return max(256, min(1024, CPU_ACTIVATIONS // (text.num_hidden_layers * text.hidden_size)))


def _first_responses(groups: Sequence[Group]) -> list[Group]:
    some = [replace(g, responses=g.responses[:KL_RESPONSES]) for g in groups]
    return [replace(g, advantages=[0.0] * len(g.responses)) for g in some]

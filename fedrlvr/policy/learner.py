"""One optimizer step of a whole cohort: log-probs of the responses, the loss of each client, its gradient, its update.

A batch's responses are sorted by length, cut into micro-batches of equal client blocks and summed, each client's sum
divided by its own normaliser; so the gradient does not depend on the cut. Responses with zero advantage are left out
(their gradient is zero) unless a KL term gives them one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrlvr.config import TrainConfig
from fedrlvr.policy.base import Base
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.optimizer import StackedAdamW
from fedrlvr.policy.sampler import left_pad, position_ids
from fedrlvr.rl import Group, Response, k3, normaliser, ratio_sums, response_losses

# Largest [responses, tokens, vocabulary] block of float32 logits held at once: 1 GiB.
MAX_LOGITS = 1 << 28


@dataclass(frozen=True)
class Row:
    """One response ready for the forward pass."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    behaviour_logps: Sequence[float]
    advantage: float


@dataclass(frozen=True)
class StepStats:
    """One client's numbers of one update. Sums are over trained tokens; nan where nothing was trained."""

    loss: float
    grad_norm: float
    ratio_mean: float
    ratio_max: float
    clip_fraction: float
    tokens_trained: int


@dataclass(frozen=True)
class MicroBatch:
    """Equal blocks of rows of every client; rows of weight zero fill up the smaller clients."""

    ids: Tensor
    attention: Tensor
    mask_BT: Tensor
    behaviour_BT: Tensor
    advantages_B: Tensor


def rows_of(groups: Sequence[Group], *, keep_zero: bool) -> list[Row]:
    """The responses of a client's groups that have a gradient (all of them if `keep_zero`), longest first."""
    rows = [
        Row(group.prompt_ids, response.token_ids, response.logps, advantage)
        for group in groups
        for response, advantage in zip(group.responses, group.advantages, strict=True)
        if (keep_zero or advantage != 0.0) and response.token_ids
    ]
    return sorted(rows, key=lambda row: -(len(row.prompt_ids) + len(row.token_ids)))


def micro_batches(base: Base, rows: Sequence[Sequence[Row]], budget: int) -> Iterator[MicroBatch]:
    """Cut each client's rows alongside the others', at most `budget` tokens with padding a piece."""
    clients = len(rows)
    vocabulary = base.model.get_input_embeddings().num_embeddings
    start, most = 0, max(map(len, rows), default=0)
    while start < most:
        rest = [row for client in rows for row in client[start:]]
        longest = max(len(row.token_ids) for row in rest)
        width = max(len(row.prompt_ids) for row in rest) + longest
        count = min(budget // (clients * width), MAX_LOGITS // (clients * longest * vocabulary))
        count = max(1, min(count, most - start))
        blank = Row(rest[0].prompt_ids[:1], rest[0].token_ids[:1], [0.0], 0.0)
        piece = [[*client[start : start + count]] for client in rows]
        yield _pack(base, [row for client in piece for row in [*client, *[blank] * (count - len(client))]], blank)
        start += count


def _pack(base: Base, rows: list[Row], blank: Row) -> MicroBatch:
    """Prompts padded on the left, responses on the right, so that responses share one range of columns."""
    prompts, prompt_mask = left_pad([row.prompt_ids for row in rows], base.pad_id, torch.device("cpu"))
    width = max(len(row.token_ids) for row in rows)
    tokens = torch.full((len(rows), width), base.pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    behaviour = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        length = len(row.token_ids)
        tokens[i, :length] = torch.tensor(row.token_ids)
        mask[i, :length] = 1
        behaviour[i, :length] = torch.tensor(row.behaviour_logps)
    real = torch.tensor([[0 if row is blank else 1] for row in rows])
    device = base.device
    return MicroBatch(
        ids=torch.cat([prompts, tokens], dim=1).to(device),
        attention=torch.cat([prompt_mask, mask], dim=1).to(device),
        mask_BT=(mask * real).to(device),
        behaviour_BT=behaviour.to(device),
        advantages_B=torch.tensor([row.advantage for row in rows]).to(device),
    )


def response_logps(base: Base, batch: MicroBatch, temperature: float) -> Tensor:
    """Log-probs [B, T] of the response tokens under the model as it is set, at the sampling temperature."""
    width = batch.mask_BT.shape[1]
    output = base.model(
        input_ids=batch.ids,
        attention_mask=batch.attention,
        position_ids=position_ids(batch.attention),
        use_cache=False,
        logits_to_keep=width + 1,
    )
    logits_BTV = output.logits[:, :-1].float()
    if temperature != 1.0:
        logits_BTV = logits_BTV / temperature
    tokens_BT1 = batch.ids[:, -width:].unsqueeze(2)
    return logits_BTV.gather(2, tokens_BT1).squeeze(2) - logits_BTV.logsumexp(dim=2)


class Learner:
    """Updates the adapters seated on a stack. Made anew whenever clients are seated."""

    def __init__(
        self,
        base: Base,
        stack: LoraStack,
        config: TrainConfig,
        *,
        temperature: float,
        max_tokens: int,
        micro_batch_tokens: int,
    ) -> None:
        self.base = base
        self.stack = stack
        self.config = config
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.micro_batch_tokens = micro_batch_tokens
        self.optimizer = StackedAdamW(stack.parameters(), config)
        # FedProx pulls towards the round's adapter: the one seated when the round began.
        self.anchors = [p.detach().clone() for p in stack.parameters()] if config.proximal_mu else []

    def step(self, groups: Sequence[Sequence[Group]], rates: Sequence[float]) -> list[StepStats]:
        """One optimizer step of every client on its own groups, at its own learning rate."""
        config = self.config
        rows = [rows_of(client, keep_zero=config.kl_beta > 0) for client in groups]
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
        sums_K3 = torch.zeros(clients, 3, device=self.base.device)
        self.optimizer.zero_grad()
        self.base.model.train(self.base.checkpointing)
        for batch in micro_batches(self.base, rows, self.micro_batch_tokens):
            reference_BT = None
            if config.kl_beta:
                with torch.no_grad(), self.stack.off():
                    reference_BT = response_logps(self.base, batch, self.temperature)
            logps_BT = response_logps(self.base, batch, self.temperature)
            losses_B = response_losses(
                logps_BT,
                batch.behaviour_BT,
                batch.advantages_B,
                batch.mask_BT,
                loss=config.loss,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                reference_logps_BT=reference_BT,
                kl_beta=config.kl_beta,
            )
            piece_K = losses_B.view(clients, -1).sum(dim=1) / norms_K
            piece_K.sum().backward()
            losses_K += piece_K.detach()
            sums_B3 = ratio_sums(
                logps_BT,
                batch.behaviour_BT,
                batch.advantages_B,
                batch.mask_BT,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            ).view(clients, -1, 3)
            sums_K3[:, 0] += sums_B3[:, :, 0].sum(dim=1)
            sums_K3[:, 1] = torch.maximum(sums_K3[:, 1], sums_B3[:, :, 1].amax(dim=1))
            sums_K3[:, 2] += sums_B3[:, :, 2].sum(dim=1)
        self.base.model.eval()
        self._pull_to_anchor()
        norms_after = self.optimizer.clip()
        self.optimizer.step(rates)
        tokens = [sum(len(row.token_ids) for row in client) for client in rows]
        return [
            StepStats(
                loss=float(losses_K[i]),
                grad_norm=float(norms_after[i]),
                ratio_mean=float(sums_K3[i, 0]) / tokens[i] if tokens[i] else math.nan,
                ratio_max=float(sums_K3[i, 1]) if tokens[i] else math.nan,
                clip_fraction=float(sums_K3[i, 2]) / tokens[i] if tokens[i] else math.nan,
                tokens_trained=tokens[i],
            )
            for i in range(clients)
        ]

    def _pull_to_anchor(self) -> None:
        """Add the gradient of (mu / 2) || adapter - anchor ||^2 (FedProx, arXiv 1812.06127)."""
        for parameter, anchor in zip(self.stack.parameters(), self.anchors, strict=False):
            pull = self.config.proximal_mu * (parameter.detach() - anchor)
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull

    @torch.no_grad()
    def kl_to_base(self, groups: Sequence[Sequence[Group]]) -> list[float]:
        """Per client the mean k3 per token between the policy that sampled these groups and the base model."""
        rows = [rows_of(_with_zero_advantages(client), keep_zero=True) for client in groups]
        sums_K = torch.zeros(len(groups), device=self.base.device)
        for batch in micro_batches(self.base, rows, self.micro_batch_tokens):
            with self.stack.off():
                reference_BT = response_logps(self.base, batch, self.temperature)
            tokens_BT = k3(batch.behaviour_BT, reference_BT) * batch.mask_BT
            sums_K += tokens_BT.view(len(groups), -1).sum(dim=1)
        counts = [sum(len(row.token_ids) for row in client) for client in rows]
        return [float(total) / count if count else 0.0 for total, count in zip(sums_K, counts, strict=True)]

    @torch.no_grad()
    def logp_gap(self, responses: Sequence[Sequence[Response]], prompt_ids: Sequence[int]) -> float:
        """Largest difference between the log-probs taken at sampling and those of the training pass."""
        rows = [[Row(prompt_ids, r.token_ids, r.logps, 0.0) for r in client] for client in responses]
        gap = 0.0
        for batch in micro_batches(self.base, rows, self.micro_batch_tokens):
            difference_BT = (response_logps(self.base, batch, self.temperature) - batch.behaviour_BT) * batch.mask_BT
            gap = max(gap, float(difference_BT.abs().max()))
        return gap


def _with_zero_advantages(groups: Sequence[Group]) -> list[Group]:
    return [replace(g, advantages=[0.0] * len(g.responses)) for g in groups]

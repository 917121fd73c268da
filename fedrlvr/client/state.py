"""A client's memory between messages, in Flower's `context.state`: never on the server, never in a message.

From round to round: how many problems it has drawn and local steps it has taken, its optimizer's moments if they are
kept, its own adapter in the arm `local`, its personal adapter, the state of its supervision (CARE's probes, TraPO's
trajectories), the rounding error of what it sent, and what delta_start.py keeps of the global model. In the middle of a
round with exchanges also: its adapter, moments and supervision as they are, and its responses to the public problems
whose pool it waits for. A message that brings a model begins this part anew, and the end of the round removes it, so a
round that was broken off leaves no trace. A client's labels are in a ledger of their own (`fedrlvr.labels`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from pydantic import TypeAdapter

from fedrlvr.client.metrics import LabelMetrics, StepMetrics
from fedrlvr.errors import MessageError
from fedrlvr.rl import Group

MEMORY, MOMENTS, OWN_ADAPTER, LOST = "fedrlvr", "fedrlvr.moments", "fedrlvr.adapter", "fedrlvr.lost"
SUPERVISION = "fedrlvr.supervision"
PERSONAL, PERSONAL_ADAPTER, PERSONAL_CHANGE = (
    "fedrlvr.personal",
    "fedrlvr.personal.adapter",
    "fedrlvr.personal.change",
)
KEPT_HALVES = "fedrlvr.kept.halves"
HELD, HELD_ADAPTER, HELD_CHANGE = "fedrlvr.held", "fedrlvr.held.adapter", "fedrlvr.held.change"
ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS, ROUND_SUPERVISION = (
    "fedrlvr.round",
    "fedrlvr.round.adapter",
    "fedrlvr.round.anchor",
    "fedrlvr.round.moments",
    "fedrlvr.round.supervision",
)


LEAST_WEIGHT = 0.02
"""Share of the largest weight of a step's tokens from which on the positions before a token count."""


@dataclass(frozen=True)
class SupervisionState:
    """Memory of a client's supervision, as `Supervision.state` gives it."""

    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]


@dataclass
class Progress:
    """Progress of a client: problems drawn and local steps done; and the state of an unfinished round.

    round_steps: local steps of this round. updates: optimizer steps since the round's adapter, public ones included.
    waiting: the own groups on public problems whose pool has not come yet.
    influence: by id of each private problem that the round's local steps have drawn, an estimate of its part in the
    round's update. tokens: of responses to private problems that had an advantage. positions: different beginnings of
    prompts with responses that the round's gradients are sums over.
    labels: numbers of the round, where labels are not there for everything.
    """

    cursor: int = 0
    steps: int = 0
    round_steps: int = 0
    updates: int = 0
    metrics: StepMetrics = field(default_factory=StepMetrics)
    waiting: list[Group] = field(default_factory=list)
    influence: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    positions: int = 0
    labels: LabelMetrics | None = None

    def influences(self, groups: Sequence[Group], rate: float, *, by_response: bool) -> None:
        """Count what one local step is about to learn from.

        A token's weight is |advantage| x (1 - probability): about the size of the gradient of its logits. A problem's
        part in the step is its share of the weights, times the learning rate, since the optimizer takes the gradient's
        size away. Positions count that are before a token whose weight is at least LEAST_WEIGHT of the largest.

        by_response: token losses are averaged over each response (the loss `grpo`), and weights with them.
        """
        weights = [_weights(group, by_response) for group in groups]
        sizes = [sum(map(sum, group)) for group in weights]
        total, least = sum(sizes), LEAST_WEIGHT * max((w for group in weights for r in group for w in r), default=0.0)
        for group, size, of_group in zip(groups, sizes, weights, strict=True):
            share, before = rate * size / total if total else 0.0, self.influence.get(group.problem.id, 0.0)
            self.influence[group.problem.id] = before + share
            if not share:
                continue
            beginnings: set[tuple[int, ...]] = set()
            for advantage, response, of_response in zip(group.advantages, group.responses, of_group, strict=True):
                self.tokens += len(response.token_ids) if advantage else 0
                counted = [i for i, weight in enumerate(of_response) if weight >= least > 0]
                beginnings |= {tuple(response.token_ids[:i]) for i in range(counted[-1] + 1 if counted else 0)}
            if beginnings:  # the empty one is the end of the prompt
                self.positions += len(beginnings) - 1 + (0 if before else len(group.prompt_ids))


_PROGRESS = TypeAdapter(Progress)


@dataclass
class Memory(Progress):
    """A client's memory between messages. supervision: CARE's probes, or what another supervision remembers."""

    supervision: SupervisionState | None = None

    @staticmethod
    def of(context: Context, *, under_way: bool) -> Memory:
        """Read a client's memory from a message's context.

        under_way: go on with the round it is in the middle of, rather than begin one.

        Raises:
            MessageError: there is no such round.
        """
        record = context.state.get(ROUND if under_way else MEMORY)
        if not isinstance(record, ConfigRecord):
            if under_way:
                raise MessageError("no round is under way here, and this message brings no adapter to begin one with")
            return Memory()
        kept = json.loads(str(record["json"])) if under_way else {name: record[name] for name in ("cursor", "steps")}
        progress = _PROGRESS.validate_python(kept)
        arrays = arrays_in(context, ROUND_SUPERVISION if under_way else SUPERVISION)
        plain = json.loads(str(record.get("supervision", "null")))
        state = None
        if plain is not None and arrays is not None:
            state = SupervisionState(dict(arrays.to_torch_state_dict()), plain)
        return Memory(**vars(progress), supervision=state)

    def _remember(self, context: Context, name: str, supervision: str, record: dict[str, int | str]) -> None:
        if self.supervision is not None:
            record["supervision"] = json.dumps(self.supervision.plain)
            context.state[supervision] = ArrayRecord(self.supervision.tensors)
        context.state[name] = ConfigRecord(record)  # type: ignore[arg-type]

    def pause(
        self, context: Context, adapter: ArrayRecord, anchor: ArrayRecord | None, moments: dict[str, torch.Tensor]
    ) -> None:
        """Store the state of a round that is not finished.

        anchor: the round's adapter where the end of the round needs it (FedProx, and what is sent as a change).
        """
        progress = Progress(**{item.name: getattr(self, item.name) for item in fields(Progress)})
        text = json.dumps(_PROGRESS.dump_python(progress, mode="json"))
        self._remember(context, ROUND, ROUND_SUPERVISION, {"json": text})
        context.state[ROUND_ADAPTER] = adapter
        context.state[ROUND_MOMENTS] = ArrayRecord(moments)
        if anchor is not None:
            context.state[ROUND_ANCHOR] = anchor

    def finish(self, context: Context, moments: dict[str, torch.Tensor] | None) -> None:
        """Finish the round: keep the memory that outlasts it.

        moments: where they are kept from round to round.
        """
        _end_round(context)
        self._remember(context, MEMORY, SUPERVISION, {"cursor": self.cursor, "steps": self.steps})
        if moments is not None:
            context.state[MOMENTS] = ArrayRecord(moments)

    def abandon(self, context: Context) -> None:
        """The round is over and nothing learnt in it is kept.

        Its problems count as drawn and its steps as taken, so the next round draws other problems.
        """
        _end_round(context)
        record = context.state.get(MEMORY)
        kept = dict(record) if isinstance(record, ConfigRecord) else {}
        context.state[MEMORY] = ConfigRecord({**kept, "cursor": self.cursor, "steps": self.steps})


def _weights(group: Group, by_response: bool) -> list[list[float]]:
    """About the size of the gradient of each token's logits, by response."""
    return [
        [abs(a) * -math.expm1(min(p, 0.0)) / (len(r.token_ids) if by_response else 1) for p in r.logps]
        for a, r in zip(group.advantages, group.responses, strict=True)
    ]


def _end_round(context: Context) -> None:
    for name in (ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS, ROUND_SUPERVISION):
        context.state.pop(name, None)


def arrays_in(context: Context, name: str) -> ArrayRecord | None:
    """The arrays of this name that a context remembers."""
    record = context.state.get(name)
    return record if isinstance(record, ArrayRecord) else None


def remember_personal(context: Context, adapter: ArrayRecord, round_: int) -> None:
    """Keep a personal adapter in the client's memory. round_: that of the message it was made for."""
    context.state[PERSONAL] = ConfigRecord({"round": round_})
    context.state[PERSONAL_ADAPTER] = adapter

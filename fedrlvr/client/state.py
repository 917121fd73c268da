"""What a client remembers between messages, in Flower's `context.state`: never on the server, never in a message.

From round to round: how many problems it has drawn and local steps it has taken, its optimizer's moments if they are
kept, its own adapter in the arm `local`, its probes, the rounding error of what it sent, and what delta_start.py keeps
of the global model. In the middle of a round with exchanges also: its adapter, moments and probes as they are,
and its responses to the public problems whose pool it waits for. A message that brings a model begins this part anew,
and the end of the round removes it, so a round that was broken off leaves no trace. A client's labels are in a ledger
of their own (`fedrlvr.labels`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context

from fedrlvr.client.label_metrics import LabelMetrics, restored
from fedrlvr.client.metrics import Means, StepMetrics
from fedrlvr.errors import MessageError
from fedrlvr.rl import Group, Response
from fedrlvr.tasks.problem import Problem

MEMORY, MOMENTS, OWN_ADAPTER, LOST = "fedrlvr", "fedrlvr.moments", "fedrlvr.adapter", "fedrlvr.lost"
PROBES = "fedrlvr.probes"
HELD, HELD_ADAPTER, HELD_CHANGE = "fedrlvr.held", "fedrlvr.held.adapter", "fedrlvr.held.change"
ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS, ROUND_PROBES = (
    "fedrlvr.round",
    "fedrlvr.round.adapter",
    "fedrlvr.round.anchor",
    "fedrlvr.round.moments",
    "fedrlvr.round.probes",
)


@dataclass(frozen=True)
class Probes:
    """CARE's judge as `Judge.state` gives it."""

    tensors: dict[str, torch.Tensor]
    plain: dict[str, int]


@dataclass
class Memory:
    """A client's past: problems drawn and local steps done; and the round that is under way.

    round_steps: local steps of this round. updates: optimizer steps since the round's adapter, public ones included.
    waiting: the own groups on public problems whose pool has not come yet.
    labels: numbers of the round, where labels are not there for everything. probes: CARE's, where there are any.
    """

    cursor: int = 0
    steps: int = 0
    round_steps: int = 0
    updates: int = 0
    metrics: StepMetrics = field(default_factory=StepMetrics)
    waiting: list[Group] = field(default_factory=list)
    labels: LabelMetrics | None = None
    probes: Probes | None = None

    @staticmethod
    def of(context: Context, *, under_way: bool) -> Memory:
        """The memory in a context.

        under_way: go on with the round it is in the middle of, rather than begin one.

        Raises:
            MessageError: there is no such round, or an older release has begun it.
        """
        if under_way:
            record = context.state.get(ROUND)
            if not isinstance(record, ConfigRecord):
                raise MessageError("no round is under way here, and this message brings no adapter to begin one with")
            kept = json.loads(str(record["json"]))
            if "means" not in kept["metrics"]:
                raise MessageError(
                    "the round under way here was begun by an older release; resume the run, which begins it anew"
                )
            waiting = [_group(item) for item in kept.pop("waiting")]
            labels, plain, metrics = (kept.pop(name) for name in ("labels", "probes", "metrics"))
            return Memory(
                **kept,
                metrics=StepMetrics(**{**metrics, "means": Means(**metrics["means"])}),
                waiting=waiting,
                labels=None if labels is None else restored(labels),
                probes=_probes(context, ROUND_PROBES, plain),
            )
        record = context.state.get(MEMORY)
        if not isinstance(record, ConfigRecord):
            return Memory()
        plain = json.loads(str(record.get("probes", "null")))
        cursor, steps = int(record["cursor"]), int(record["steps"])  # type: ignore[arg-type]
        return Memory(cursor=cursor, steps=steps, probes=_probes(context, PROBES, plain))

    def pause(
        self, context: Context, adapter: ArrayRecord, anchor: ArrayRecord | None, moments: dict[str, torch.Tensor]
    ) -> None:
        """Remember the round under way.

        anchor: the round's adapter where the end of the round needs it (FedProx, and what is sent as a change).
        """
        kept = {name: getattr(self, name) for name in ("cursor", "steps", "round_steps", "updates")}
        kept |= {"metrics": asdict(self.metrics), "waiting": [_item(group) for group in self.waiting]}
        kept["labels"] = None if self.labels is None else asdict(self.labels)
        kept["probes"] = None if self.probes is None else self.probes.plain
        context.state[ROUND] = ConfigRecord({"json": json.dumps(kept)})
        context.state[ROUND_ADAPTER] = adapter
        context.state[ROUND_MOMENTS] = ArrayRecord(moments)
        if self.probes is not None:
            context.state[ROUND_PROBES] = ArrayRecord(self.probes.tensors)
        if anchor is not None:
            context.state[ROUND_ANCHOR] = anchor

    def finish(self, context: Context, moments: dict[str, torch.Tensor] | None) -> None:
        """The round is over: remember what lasts.

        moments: where they are kept from round to round.
        """
        for name in (ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS, ROUND_PROBES):
            context.state.pop(name, None)
        lasting: dict[str, int | str] = {"cursor": self.cursor, "steps": self.steps}
        if self.probes is not None:
            lasting["probes"] = json.dumps(self.probes.plain)
            context.state[PROBES] = ArrayRecord(self.probes.tensors)
        context.state[MEMORY] = ConfigRecord(lasting)  # type: ignore[arg-type]
        if moments is not None:
            context.state[MOMENTS] = ArrayRecord(moments)


def arrays_in(context: Context, name: str) -> ArrayRecord | None:
    """The arrays of this name that a context remembers."""
    record = context.state.get(name)
    return record if isinstance(record, ArrayRecord) else None


def _probes(context: Context, name: str, plain: dict[str, int] | None) -> Probes | None:
    arrays = arrays_in(context, name)
    return Probes(dict(arrays.to_torch_state_dict()), plain) if plain is not None and arrays is not None else None


def _item(group: Group) -> dict[str, Any]:
    problem = group.problem
    assert isinstance(problem, Problem), "only public problems are waited with"
    return {
        "problem": [problem.prompt, problem.answer, problem.id, problem.source, problem.kind, dict(problem.info)],
        "prompt_ids": list(group.prompt_ids),
        "responses": [[list(r.token_ids), list(r.logps), r.text, r.finished, r.reward] for r in group.responses],
    }


def _group(item: dict[str, Any]) -> Group:
    rows: Sequence[Sequence[Any]] = item["responses"]
    responses = [Response(ids, logps, text, finished, reward=reward) for ids, logps, text, finished, reward in rows]
    return Group(Problem(*item["problem"]), item["prompt_ids"], responses)

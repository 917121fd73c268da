"""The personal adapters, which clients make after the last round: what the server asks, and what it writes down.

The messages count as one round more than the run has, so that clients begin with their memory of the last round, and
do so again where a run was broken off in between. No reply brings an adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType
from flwr.serverapp import Grid

from fedrlvr.aggregation.stacking import add
from fedrlvr.client.state import PERSONAL, PERSONAL_ADAPTER, arrays_in
from fedrlvr.files import atomic_directory, private_directory
from fedrlvr.policy.base import Base
from fedrlvr.policy.peft_format import base_reference, save_peft
from fedrlvr.reporting.observer import PhaseStarted
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.participation import Reply
from fedrlvr.server.run_directory import personal_directory
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.wire.messages import (
    Calibration,
    EvaluateRequest,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    read_calibrations,
    read_numbers,
)


def personal_adapters(strategy: FederatedRLVR, grid: Grid, timeout: float) -> dict[str, Any]:
    """Have each client that trains make its personal adapter and measure it on held-out problems; the record of both.

    A client that fails is left out by name, as in a round.

    Raises:
        RoundError, MessageError: as `Participation.accepted`.
    """
    config, participation = strategy.config, strategy.participation
    round_ = config.train.rounds + 1
    participation.record = record = RoundRecord(round_)
    strategy.observer.notify(PhaseStarted(config.train.rounds, "personal"))
    method, section = config.personal.method, config.personal
    request = participation.request(
        TrainRequest,
        round_,
        steps=section.steps,
        personal=True,
        train=section.train(config.train),
        trains="AB",
        precision="float32",
        choose=config.evaluate if method.mixes else None,
    )
    arrays = adapter_to_arrays(strategy.adapter, strategy.model.halves)

    def read(reply: Reply) -> tuple[str, dict[str, float], dict[str, Calibration]]:
        numbers = read_numbers(reply.message, place=reply.place)
        calibrations = read_calibrations(reply.message, place=reply.place)
        numbers["num-examples"] = participation.problems(reply.client, "train", numbers["num-examples"])
        return reply.client, numbers, calibrations

    def messages(kind: str, request: TrainRequest | EvaluateRequest) -> list[Message]:
        brings = arrays if kind == MessageType.TRAIN else None
        return [
            Message(participation.content(request, node, brings), node, kind, group_id=str(round_))
            for node in participation.present(participation.training(grid))
        ]

    replies = participation.ask(grid, messages(MessageType.TRAIN, request), timeout)
    for client, numbers, calibrations in participation.accepted(round_, replies, read):
        record.client(client).update(numbers)
        record.calibrations[client] = calibrations
    evaluation = EvaluateRequest(
        round=round_, seed=config.run.seed, personal=True, sampling=config.sampling, evaluate=config.evaluate
    )
    strategy.aggregate_evaluate(round_, participation.ask(grid, messages(MessageType.EVALUATE, evaluation), timeout))
    return {name: part for name, part in record.to_json().items() if name != "round"}


def export_personal(
    directory: Path,
    strategy: FederatedRLVR,
    base: Base,
    memories: Mapping[str, Context],
    left_out: Collection[str],
) -> None:
    """Write the personal adapter of each client whose memory is kept here beside that memory, in PEFT's format.

    directory: of the run. left_out: clients without one, whatever an earlier end of the run has left.

    Raises:
        CheckpointError: it cannot be written.
    """
    config, model = strategy.config, strategy.model
    round_ = config.train.rounds + config.personal.method.finishes
    for client, context in memories.items():
        place, arrays = personal_directory(directory, client), arrays_in(context, PERSONAL_ADAPTER)
        record = context.state.get(PERSONAL)
        current = isinstance(record, ConfigRecord) and record["round"] == round_
        if arrays is None or not current or client in left_out:
            shutil.rmtree(place, ignore_errors=True)
            continue
        adapter = arrays_to_adapter(arrays, model.start_of(config.lora.rank_of(client)), place=client)
        whole = add(adapter, beside) if (beside := model.beside(client)) else adapter
        assert whole is not None
        private_directory(place.parent)
        with atomic_directory(place) as files:
            save_peft(whole, files, base_name=base_reference(config.model.name), fused_experts=base.fused_experts)

"""A client's personal adapter, which is made when the rounds are over and never leaves the client.

A `train` message for it brings the global model as any other does. What is trained stays in the client's memory, with
the round it was made in, and a later `evaluate` message uses it. Where clients keep a part of their adapter in every
round, the last `evaluate` message brings the other part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.personal import SHARES, best_share, mixed
from fedrlvr.aggregation.stacking import add
from fedrlvr.client.delta_start import held_change, of_scale_1
from fedrlvr.client.initial_adapter import Reading, Start
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import PERSONAL, PERSONAL_ADAPTER, PERSONAL_CHANGE, arrays_in
from fedrlvr.config import EvaluateConfig, SamplingConfig
from fedrlvr.errors import MessageError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import private_seed, stream
from fedrlvr.wire.messages import adapter_to_arrays


def start(reading: Reading, request: ClientRequest) -> Start:
    """The personal adapter of a client, and the change of its base weights, for a message that uses it.

    Raises:
        MessageError: the client has no personal adapter of this round.
    """
    record, arrays = request.context.state.get(PERSONAL), arrays_in(request.context, PERSONAL_ADAPTER)
    if arrays is None or not isinstance(record, ConfigRecord) or record["round"] != request.asked.round:
        raise MessageError(f"{request.place}: no personal adapter of this round is here")
    adapter = reading.adapter(arrays, request.client.initial, f"{request.client.name}'s personal adapter")
    rank, beside = int(record.get("rank", 0)), arrays_in(request.context, PERSONAL_CHANGE)  # type: ignore[arg-type]
    if not rank or beside is None:
        return Start(adapter, held_change(reading, request))
    like = of_scale_1(request.client.largest, rank)
    return Start(adapter, reading.adapter(beside, like, f"what {request.client.name}'s personal adapter is beside"))


def of_parts(begin: Start, request: ClientRequest) -> Start:
    """The personal adapter that a message's part of the model and the client's own make, with a note to keep it.

    begin: both together.
    """
    rank = begin.change.rank if begin.change is not None else 0
    keep: dict[str, ArrayRecord | ConfigRecord] = {
        PERSONAL: ConfigRecord({"round": request.asked.round, "rank": rank}),
        PERSONAL_ADAPTER: adapter_to_arrays(begin.adapter),
    }
    if begin.change is not None:
        keep[PERSONAL_CHANGE] = adapter_to_arrays(begin.change)
    return replace(begin, keep={**begin.keep, **keep})


def whole(request: ClientRequest) -> Adapter:
    """The client's personal adapter on the original base weights.

    request: of the round that the adapter was made in.

    Raises:
        MessageError: as `start`.
    """
    begin = start(Reading(), request)
    return begin.adapter if begin.change is None else add(begin.adapter, begin.change) or begin.adapter


def mix(
    cohort: Cohort,
    sampling: SamplingConfig,
    choose: EvaluateConfig,
    requests: Mapping[str, ClientRequest],
    starts: Mapping[str, Start],
    trained: Mapping[str, Adapter],
) -> tuple[dict[str, Adapter], dict[str, float]]:
    """Interpolate each client's adapter with the global one; by row the result, and the share of the global adapter.

    The share is that of SHARES with the highest pass@1 on the client's own validation problems, all shares on the same
    random numbers; in a tie the largest. The cohort is seated anew.

    starts: what the clients began with. trained: what they ended with.
    """
    decoding = Decoding(
        responses=choose.samples, max_new_tokens=sampling.max_new_tokens, temperature=choose.temperature
    )
    prompts = {row: request.encode(cohort.base, request.data.validation) for row, request in requests.items()}
    seeds = {
        row: stream(private_seed(request.asked.seed, request.data.secret), request.client.name, "choose")
        for row, request in requests.items()
    }
    changes = {row: begin.change for row, begin in starts.items() if begin.change is not None}
    right: dict[str, dict[float, int]] = {row: {} for row in requests}
    for share in SHARES:
        cohort.seat({row: mixed(starts[row].adapter, trained[row], share) for row in requests}, changes)
        drawn = cohort.sample(prompts, decoding, seeds)
        for row, request in requests.items():
            pairs = zip(request.data.validation, drawn[row], strict=True)
            rewards = [
                request.data.grade(problem, [r.text for r in responses], [r.finished for r in responses])
                for problem, responses in pairs
            ]
            right[row][share] = sum(reward >= CORRECT for of_problem in rewards for reward in of_problem)
    shares = {row: best_share(right[row]) for row in requests}
    return {row: mixed(starts[row].adapter, trained[row], share) for row, share in shares.items()}, shares

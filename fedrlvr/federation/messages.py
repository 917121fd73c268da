"""What travels, and its checks. Every message's content is made and read here and nowhere else.

    train          down  arrays: the adapter           config: a TrainRequest
                   up    arrays: the adapter           metrics: numbers
    evaluate       down  arrays: the adapter           config: an EvaluateRequest
                   up    metrics: numbers              config: names of sources
    query.respond  what an exchange adds: publicmessages.py

No private prompt, answer or response has a place in these. A reader trusts nothing: requests are validated field by
field, adapters by layout, size and value, numbers by type and count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import EvaluateConfig, LabelsSupervision, PubSwapCoordination, SamplingConfig, TrainConfig
from fedrlvr.errors import AdapterError, MessageError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
MAX_REQUEST = 1 << 16
MAX_SOURCES = 10_000


class Request(BaseModel):
    """Base of all requests.

    round: counted from 1; 0 is before the first.
    own_adapter: use the adapter the client keeps itself, and send none (the arm `local`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    round: int = Field(ge=0)
    seed: int = Field(ge=0)
    own_adapter: bool = False
    sampling: SamplingConfig


class StretchRequest(Request):
    """Base of what asks for training.

    steps: local steps to take now, of the round's `train.local_steps`.
    coordination: set in a round with exchanges.
    """

    steps: int = Field(ge=0)
    train: TrainConfig
    supervision: LabelsSupervision
    coordination: PubSwapCoordination | None = None


class TrainRequest(StretchRequest):
    """Take the round's last local steps, or just the public steps on the last share, and send the adapter."""

    @model_validator(mode="after")
    def _something_to_do(self) -> TrainRequest:
        if not self.steps and self.coordination is None:
            raise ValueError("steps must be at least 1 in a round without exchanges")
        return self


class RespondRequest(StretchRequest):
    """Take public steps on the share that comes with it, then local steps; then answer the public problems.

    exchange: counted from 1 within the round; the first comes with the round's adapter.
    send: whether the responses are to be sent, or kept for public steps without a swap.
    """

    exchange: int = Field(ge=1)
    send: bool = True


class EvaluateRequest(Request):
    """Measure pass@1 on the client's held-out problems."""

    evaluate: EvaluateConfig


R = TypeVar("R", bound=Request)


def content(request: Request, arrays: ArrayRecord | None) -> RecordDict:
    """A request's content."""
    record = RecordDict({CONFIG: ConfigRecord({"request": request.model_dump_json()})})
    if arrays is not None:
        record[ARRAYS] = arrays
    return record


def read_request(message: Message, kind: type[R]) -> R:
    """The request in a message.

    Raises:
        MessageError: there is none, or a field of it does not fit.
    """
    record = message.content.config_records.get(CONFIG)
    text = record.get("request") if record is not None else None
    if not isinstance(text, str) or len(text) > MAX_REQUEST:
        raise MessageError(f"a {message.metadata.message_type} message without a usable request")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise MessageError(f"a {message.metadata.message_type} request that cannot be used: {where}") from None


def adapter_to_arrays(adapter: Adapter) -> ArrayRecord:
    """The adapter as two Flower arrays, all A factors and all B factors end to end in the layers' order.

    Two arrays and not two per layer: Flower handles each array by itself, which for hundreds of small ones costs more
    than the numbers in them. Their names carry the adapter's layout, so that another model's adapter is no match.
    """
    return ArrayRecord(
        {
            f"{half}.{adapter.layout}": Array(torch.cat([tensor.flatten() for _, tensor in factors]).numpy())
            for half, factors in _halves(adapter)
        }
    )


def arrays_to_adapter(arrays: ArrayRecord, like: Adapter, *, whose: str) -> Adapter:
    """The adapter in a record, checked against one of the right layout before it is decoded.

    Raises:
        AdapterError: other names, types or sizes, bytes that are no array, or values that are not finite.
    """
    if list(arrays) != [f"{half}.{like.layout}" for half in "AB"]:
        raise AdapterError(
            f"{whose}: its factors are not those of this run's adapters (their names, order or shapes differ). Its "
            "organisation uses another model, other lora settings or another version of transformers."
        )
    tensors: dict[str, Tensor] = {}
    for half, factors in _halves(like):
        array = arrays[f"{half}.{like.layout}"]
        count = sum(tensor.numel() for _, tensor in factors)
        # The header a sender writes is checked first, so that no oversized array is ever allocated.
        if tuple(array.shape) != (count,) or len(array.data) > count * 8 + 1024:
            raise AdapterError(f"{whose}: its {half} factors have shape {tuple(array.shape)}, expected ({count},).")
        try:
            values = array.numpy()
        except Exception as error:  # numpy raises several kinds for bytes that are no array
            raise AdapterError(f"{whose}: its {half} factors cannot be decoded ({type(error).__name__}).") from None
        if values.shape != (count,) or values.dtype not in (np.float32, np.float16, np.float64):
            raise AdapterError(
                f"{whose}: its {half} factors are {values.dtype} {values.shape}, expected numbers of shape ({count},)."
            )
        whole = torch.from_numpy(values.astype(np.float32, copy=False))
        parts = whole.split([tensor.numel() for _, tensor in factors])
        # A sum of finite numbers is finite or has overflowed; only then each is looked at, which costs five times it.
        if not math.isfinite(float(whole.sum())) and not bool(torch.isfinite(whole).all()):
            bad = next(n for (n, _), part in zip(factors, parts, strict=True) if not bool(torch.isfinite(part).all()))
            raise AdapterError(f"{whose}: {bad} holds values that are not finite.")
        for (name, tensor), part in zip(factors, parts, strict=True):
            tensors[name] = part.view(tensor.shape)
    return like.alike({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in like.layers})


def _halves(adapter: Adapter) -> list[tuple[str, list[tuple[str, Tensor]]]]:
    """("A", names and tensors of all A factors), and the same for B."""
    layers = adapter.layers.items()
    return [
        ("A", [(f"{name}.A", factors.A) for name, factors in layers]),
        ("B", [(f"{name}.B", factors.B) for name, factors in layers]),
    ]


def metrics_record(numbers: Mapping[str, float | int | list[float] | list[int]]) -> MetricRecord:
    """Numbers as a Flower record; what is not a number (nothing was trained, say) is left out."""
    kept = {k: v for k, v in numbers.items() if isinstance(v, list) or math.isfinite(v)}
    return MetricRecord(kept)


def read_numbers(message: Message, *, whose: str) -> dict[str, float]:
    """The scalar metrics of a reply.

    Raises:
        MessageError: there are none, they have no `num-examples`, or a value is not finite.
    """
    record = message.content.metric_records.get(METRICS)
    if record is None or len(record) > 1000 or not isinstance(record.get("num-examples"), int):
        raise MessageError(f"{whose}: a reply without usable metrics (num-examples is needed)")
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
    for key, value in numbers.items():
        if not math.isfinite(value):
            raise MessageError(f"{whose}: the metric {key!r} is not finite")
    if numbers["num-examples"] < 0:
        raise MessageError(f"{whose}: num-examples is negative")
    return numbers


class SourceScores(BaseModel):
    """Pass@1 sums by source: over n problems the sum of their pass rates and of the squares."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(max_length=200)
    n: int = Field(ge=0)
    total: float = Field(ge=0)
    squares: float = Field(ge=0)


def scores_content(scores: list[SourceScores], numbers: Mapping[str, float | int]) -> RecordDict:
    """An evaluation's reply."""
    return RecordDict(
        {
            METRICS: metrics_record(
                {
                    **numbers,
                    "n": [s.n for s in scores],
                    "total": [s.total for s in scores],
                    "squares": [s.squares for s in scores],
                }
            ),
            # Flower cannot count the bytes of an empty list of texts: a client with nothing held out sends none.
            CONFIG: ConfigRecord({"sources": [s.source for s in scores]} if scores else {}),
        }
    )


def read_scores(message: Message, *, whose: str) -> list[SourceScores]:
    """The scores in an evaluation's reply.

    Raises:
        MessageError: lists that are missing, too long, of different lengths, or not possible as sums of pass rates.
    """
    metrics = message.content.metric_records.get(METRICS) or MetricRecord()
    names = message.content.config_records.get(CONFIG) or ConfigRecord()
    found = [names.get("sources", []), metrics.get("n"), metrics.get("total"), metrics.get("squares")]
    columns = [column for column in found if isinstance(column, list)]
    if len(columns) != len(found) or len({len(column) for column in columns}) != 1:
        raise MessageError(f"{whose}: an evaluation reply without matching lists of sources and scores")
    if len(columns[0]) > MAX_SOURCES:
        raise MessageError(f"{whose}: more than {MAX_SOURCES} sources")
    try:
        scores = [SourceScores(source=s, n=n, total=t, squares=q) for s, n, t, q in zip(*columns, strict=True)]
    except ValidationError as error:
        raise MessageError(f"{whose}: an evaluation score that cannot be used ({error.errors()[0]['msg']})") from None
    if any(not (s.squares <= s.total + 1e-6 and s.total <= s.n + 1e-6) for s in scores):
        raise MessageError(f"{whose}: scores that are no sums of pass rates")
    return scores


def nbytes(message: Message) -> int:
    """Bytes of a message's records as Flower counts them."""
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.values())

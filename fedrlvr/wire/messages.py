"""Messages between server and clients, and their checks. Every content is made and read here, and in the modules named
below.

    train          down  arrays: the adapter           config: a TrainRequest         probes: everybody's, averaged
                   up    arrays: the adapter           metrics: numbers               probes: the client's
                         or unchanged: it is what the message brought
                         of a personal adapter the numbers alone
    evaluate       down  arrays: the adapter           config: an EvaluateRequest
                   up    metrics: numbers              config: names of sources
    query.respond  what an exchange adds: public_messages.py; the round's first message brings the probes
    adapters in fewer bytes than float32: compression.py; less, or more, than a whole adapter down: model_delta.py

No private prompt, answer or response has a place in these. A reader trusts nothing: requests are validated field by
field, adapters by layout, size and value, numbers by type and count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors, Half, Halves
from fedrlvr.config import (
    Asking,
    EvaluateConfig,
    Noise,
    PubSwapCoordination,
    SamplingConfig,
    Supervision,
    TrainConfig,
)
from fedrlvr.config.aggregation import NumberFormat
from fedrlvr.config.problems import MOST_REWARDS, is_reward_mean
from fedrlvr.errors import AdapterError, MessageError, printable, validation_text

ARRAYS, CONFIG, DELTA, METRICS, PROBES = "arrays", "config", "delta", "metrics", "probes"
UNCHANGED = "unchanged"
MAX_REQUEST = 1 << 16
MAX_SOURCES = 500
"""Largest number of sources in an evaluation's scores."""
MOST_REASON = 500
"""Largest number of characters kept of the reason why a client was left out or a message refused; part of it may be
foreign text."""
BINS = 10
"""Number of bins of P1 in a calibration table: tenths."""


class Request(BaseModel):
    """Base of all requests, with the settings of sampling.

    round: counted from 1; 0 is before the first.
    own_adapter: use the adapter the client keeps itself, and send none (the arm `local`).
    personal: of the personal adapters, which come after the last round and count as one round more: training keeps its
    result at the client, and an evaluation uses it. An evaluation that brings a part of the model makes the personal
    adapter of it and of what the client keeps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    round: int = Field(ge=0)
    seed: int = Field(ge=0)
    own_adapter: bool = False
    personal: bool = Field(False, exclude_if=lambda value: not value)  # so that other messages are as they were
    sampling: SamplingConfig

    @property
    def run_round(self) -> int:
        """The round of the run that the message belongs to; personal adapters belong to the last one."""
        return self.round - self.personal


class StretchRequest(Request):
    """Base of the requests that ask for training.

    steps: local steps to take now, of the round's `train.local_steps`.
    coordination: set in a round with exchanges.
    trains: the half of the adapter that is trained, and sent, unless `sends` names a part of it. keeps: halves that the
    client begins its next round with (personal adapters). precision: what it is sent in. feedback: whether what
    rounding loses is to be sent the next time. privacy: the noise that is added to the change before it is sent; the
    client's numbers then stay with it.
    """

    steps: int = Field(ge=0)
    train: TrainConfig
    supervision: Supervision
    coordination: PubSwapCoordination | None = None
    trains: Halves = "AB"
    precision: NumberFormat = "float32"
    feedback: bool = True
    sends: Halves | None = Field(None, exclude_if=lambda value: value is None)
    keeps: Halves | None = Field(None, exclude_if=lambda value: value is None)
    privacy: Noise | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _goes_together(self) -> StretchRequest:
        self.supervision.check_group(self.sampling.group_size)
        if self.train.dynamic_sampling and isinstance(self.supervision, Asking):
            raise ValueError(f"train.dynamic_sampling would cost labels with supervision.type {self.supervision.type}")
        if (self.train.loss == "cross_entropy") != (self.supervision.type == "demonstrations"):
            raise ValueError("train.loss 'cross_entropy' and supervision 'demonstrations' go together")
        if self.privacy is not None:
            self.privacy.check_alone(self)
        return self


class TrainRequest(StretchRequest):
    """Take the round's last local steps, or just the public steps on the last share, and send the adapter.

    choose: set where a personal adapter is mixed with the global one: how responses to the validation problems are
    sampled, by which the client chooses the shares.
    """

    choose: EvaluateConfig | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _something_to_do(self) -> TrainRequest:
        if not self.steps and self.coordination is None:
            raise ValueError("steps must be at least 1 in a round without exchanges")
        if self.personal and (self.own_adapter or self.coordination or not self.run_round):
            raise ValueError("a personal adapter begins with the global adapter after the last round")
        if self.choose is not None and not self.personal:
            raise ValueError("choose is for personal adapters")
        return self


class RespondRequest(StretchRequest):
    """Take public steps on the share that comes with it, then local steps; then answer the public problems.

    exchange: counted from 1 within the round; the first comes with the round's adapter.
    send: whether the responses are to be sent, or kept for public steps without a swap.
    """

    exchange: int = Field(ge=1)
    send: bool = True

    @model_validator(mode="after")
    def _rules_of_the_exchange(self) -> RespondRequest:
        if self.coordination is None:
            raise ValueError("coordination is needed for an exchange")
        if self.personal:
            raise ValueError("personal adapters are made without exchanges, after the last round")
        return self


class EvaluateRequest(Request):
    """Measure pass@1 on the client's held-out problems.

    held_out_loss: also measure the cross entropy of their own responses, where there are any.
    """

    evaluate: EvaluateConfig
    held_out_loss: bool = Field(False, exclude_if=lambda value: not value)


R = TypeVar("R", bound=Request)
M = TypeVar("M", bound=BaseModel)


def content(request: Request, **records: ArrayRecord | ConfigRecord) -> RecordDict:
    """Content of the message that carries a request.

    records: what else travels with it, by name.
    """
    return RecordDict({CONFIG: ConfigRecord({"request": request.model_dump_json()}), **records})


def read_request(message: Message, kind: type[R]) -> R:
    """Read and check the request in a message.

    Raises:
        MessageError: there is none, or a field of it does not fit.
    """
    return parsed(message, CONFIG, "request", kind)


def parsed(message: Message, name: str, key: str, kind: type[M]) -> M:
    """The JSON under a key of a message's record, validated.

    Raises:
        MessageError: there is none, or a field of it does not fit.
    """
    record = record_in(message.content, name, ConfigRecord)
    text = record.get(key) if record is not None else None
    if not isinstance(text, str) or len(text) > MAX_REQUEST:
        raise MessageError(f"a {message.metadata.message_type} message without a usable {key}")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        kind_ = message.metadata.message_type
        raise MessageError(f"a {kind_} {key} that cannot be used: {validation_text(error, 5)}") from None


def adapter_to_arrays(adapter: Adapter, halves: Halves = "AB") -> ArrayRecord:
    """The adapter as two Flower arrays, all A factors and all B factors end to end in the layers' order.

    halves: which of the two; the other stays at home.

    Two arrays and not two per layer: Flower handles each array by itself, which for hundreds of small ones costs more
    than the numbers in them. Their names carry the adapter's layout, so that another model's adapter is no match.
    """
    return ArrayRecord(
        {
            f"{half}.{adapter.layout}": Array(torch.cat([tensor.flatten() for _, tensor in factors]).numpy())
            for half, factors in by_half(adapter, halves)
        }
    )


def arrays_to_adapter(arrays: ArrayRecord, like: Adapter, *, place: str, halves: Halves = "AB") -> Adapter:
    """The adapter in a record, checked against one of the right layout before it is decoded.

    halves: which of the two are in the record, no more and no less; the other is that of `like`.

    Raises:
        AdapterError: other names, types or sizes, bytes that are no array, or values that are not finite.
    """
    if list(arrays) != [f"{half}.{like.layout}" for half in halves]:
        raise AdapterError(
            f"{place}: its factors are not those of this run's adapters (their names, order or shapes differ). Its "
            "organisation uses another model, other lora settings or another version of transformers."
        )
    tensors = dict(like.tensors())
    for half, factors in by_half(like, halves):
        count = sum(tensor.numel() for _, tensor in factors)
        floats = (np.float32, np.float16, np.float64)
        values = decoded(arrays[f"{half}.{like.layout}"], count, floats, what=f"{place}: its {half} factors")
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is refused below
            whole = torch.from_numpy(values.astype(np.float32, copy=False))
        parts = torch.split(whole, [tensor.numel() for _, tensor in factors])
        # A sum of finite numbers is finite or has overflowed; only then each is looked at, which costs five times it.
        if not math.isfinite(float(whole.sum())) and not bool(torch.isfinite(whole).all()):
            bad = next(n for (n, _), part in zip(factors, parts, strict=True) if not bool(torch.isfinite(part).all()))
            raise AdapterError(
                f"{place}: {bad} holds values that are not finite. Lower train.learning_rate, train.weight_decay, "
                "train.kl_beta or train.proximal_mu, whichever is large."
            )
        for (name, tensor), part in zip(factors, parts, strict=True):
            tensors[name] = part.view(tensor.shape)
    return like.alike({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in like.layers})


def by_half(adapter: Adapter, halves: Halves = "AB") -> list[tuple[Half, list[tuple[str, Tensor]]]]:
    """("A", names and tensors of all A factors), and the same for B; or of one half only."""
    layers = adapter.layers.items()
    both: list[tuple[Half, list[tuple[str, Tensor]]]] = [
        ("A", [(f"{name}.A", factors.A) for name, factors in layers]),
        ("B", [(f"{name}.B", factors.B) for name, factors in layers]),
    ]
    return [(half, factors) for half, factors in both if half in halves]


def unchanged_record(brought: ArrayRecord, ends: ArrayRecord) -> ConfigRecord | None:
    """The note that an adapter is bit for bit the one that the message brought; None if it is not.

    brought: the arrays in the message. ends: those that would travel without the note.
    """
    same = all(name in brought and brought[name].data == array.data for name, array in ends.items())
    return ConfigRecord({"digest": _digest(ends)}) if same and ends else None


def says_unchanged(content: RecordDict, sent: ArrayRecord, *, place: str) -> bool:
    """Whether a reply has the note in place of an adapter. sent: the arrays that its message brought.

    Raises:
        MessageError: the note stands beside an adapter, cannot be read, or is about other arrays.
    """
    if UNCHANGED not in content:
        return False
    record = record_in(content, UNCHANGED, ConfigRecord)
    if record is None or len(record) != 1 or ARRAYS in content or record.get("digest") != _digest(sent):
        raise MessageError(f"{place}: its reply says that an adapter is unchanged, and not the one that it was sent")
    return True


def _digest(arrays: ArrayRecord) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()


def probes_record(probes: Tensor) -> ArrayRecord:
    """Weights [N] of CARE's probes as a record, whole and in float32."""
    return ArrayRecord({PROBES: Array(probes.detach().to("cpu", torch.float32).flatten().numpy())})


def read_probes(record: ArrayRecord, count: int | None, *, place: str) -> Tensor:
    """The probes in a record, float32 [count].

    count: None takes any number, for a reader that goes on to check it.

    Raises:
        AdapterError: another size or type, bytes that are no array, or values that are not finite.
    """
    if list(record) != [PROBES]:
        raise AdapterError(f"{place}: its probes are not one array.")
    array = record[PROBES]
    if count is None:
        # Not what the sender writes but what its bytes have room for bounds what is allocated.
        count = min(array.shape[0] if len(array.shape) == 1 else 0, len(array.data) // 4)
    probes = torch.from_numpy(decoded(array, count, (np.float32,), what=f"{place}: its probes"))
    if not bool(torch.isfinite(probes).all()):
        raise AdapterError(f"{place}: its probes hold values that are not finite.")
    return probes


def decoded(array: Array, count: int, types: tuple[type[np.number[Any]], ...], *, what: str) -> NDArray[Any]:
    """Read `count` numbers from a foreign array, whose type must be one of `types`.

    Raises:
        AdapterError: another shape or type, too many bytes, or bytes that are no array; `what` begins the text.
    """
    # The header a sender writes is checked first, so that no oversized array is ever allocated.
    room = count * max(np.dtype(kind).itemsize for kind in types) + 1024
    if tuple(array.shape) != (count,) or len(array.data) > room:
        actual = f"{str(tuple(array.shape))[:100]} in {len(array.data)} bytes"
        raise AdapterError(f"{what} have shape {actual}, expected ({count},) in at most {room}.")
    try:
        values = array.numpy()
    except Exception as error:  # numpy raises several kinds for bytes that are no array
        raise AdapterError(f"{what} cannot be decoded ({type(error).__name__}).") from None
    if not isinstance(values, np.ndarray):  # numpy opens a zip file of arrays too
        raise AdapterError(f"{what} cannot be decoded ({type(values).__name__}).")
    if values.shape != (count,) or values.dtype not in types:
        actual = f"{values.dtype} {values.shape}"[:100]
        raise AdapterError(f"{what} are {actual}, expected {types[0].__name__} of shape ({count},).")
    return values


_COUNT, _SHARE, _REWARD, _SECONDS = (0, 1e12), (0, 1 + 1e-6), (-1e6, 1e6), (0, 1e7)
SINGLE = 3.5e38
"""A bound above every finite float32 number."""
_SINGLE = (-SINGLE, SINGLE)
NUMBERS: Mapping[str, tuple[float, float]] = {
    "num-examples": (0, 1e9),
    **dict.fromkeys(("tokens_sampled", "tokens_trained", "public_tokens_sampled", "public_tokens_trained"), _COUNT),
    **dict.fromkeys(("labels_asked", "labels_used", "labels_total", "response_length", "problems_redrawn"), _COUNT),
    **dict.fromkeys(("pass@1", "zero_variance_groups", "unfinished", "unreadable", "clip_fraction"), _SHARE),
    **dict.fromkeys(("share_query", "share_known", "share_reliable", "share_masked", "global_share"), _SHARE),
    **dict.fromkeys(("majority_right", "audit_majority_right", "audit_reliable_right", "probe_auc"), _SHARE),
    **dict.fromkeys(("reward", "verified_reward"), _REWARD),
    **{f"seconds_{phase}": _SECONDS for phase in ("sample", "grade", "train", "public", "probes", "evaluate")},
    **dict.fromkeys(
        ("loss", "held_out_loss", "grad_norm", "ratio_mean", "ratio_max", "kl_to_base", "audit_gap_correlation"),
        _SINGLE,
    ),
    **dict.fromkeys(("reliability_loss", "response_loss", "correction_loss"), _SINGLE),
}
"""The numbers that a client may report of its training or evaluation, each with its least and largest value, besides
the means of several rewards (`is_reward_mean`). Rewards are means of a user's own function; losses, norms and ratios
may be as large as float32 holds."""


def metrics_record(numbers: Mapping[str, float | int | list[float] | list[int]]) -> MetricRecord:
    """Numbers as a Flower record; what is not a number (nothing was trained, say) is left out."""
    kept = {k: v for k, v in numbers.items() if isinstance(v, list) or math.isfinite(v)}
    return MetricRecord(kept)


def read_numbers(message: Message, *, place: str) -> dict[str, float]:
    """The scalar metrics of a reply: those of `NUMBERS` and the means of several rewards; any other name is dropped.

    Raises:
        MessageError: there are none, they have no `num-examples`, or a value is outside its bounds.
    """
    record = record_in(message.content, METRICS, MetricRecord)
    if record is None or len(record) > 1000 or not isinstance(record.get("num-examples"), int):
        raise MessageError(f"{place}: a reply without usable metrics (num-examples is needed)")
    means = [name for name in record if is_reward_mean(name)][:MOST_REWARDS]
    values = {name: record[name] for name in (*NUMBERS, *means) if name in record}
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    for name, value in numbers.items():
        least, most = NUMBERS.get(name, _REWARD)
        if not least <= value <= most:
            raise MessageError(f"{place}: the metric {name} is outside {least:g} to {most:g}, or not finite")
    return numbers


Calibration = dict[str, list[int] | list[float]]
"""Calibration of P1 by tenths: n problems, the sum of their P1, and the number of majorities that were right."""


def read_calibrations(message: Message, *, place: str) -> dict[str, Calibration]:
    """The calibrations in a train reply: `calibration` of the labelled problems, `audit_calibration` of all.

    Raises:
        MessageError: lists that are not there together, or that no problems can have given.
    """
    record = record_in(message.content, METRICS, MetricRecord) or MetricRecord()
    calibrations: dict[str, Calibration] = {}
    for name, prefix in (("calibration", "p1"), ("audit_calibration", "audit_p1")):
        lists = {key: record[f"{prefix}_{key}"] for key in ("n", "sum", "right") if f"{prefix}_{key}" in record}
        if not lists:
            continue
        if len(lists) < 3 or not all(isinstance(column, list) and len(column) == BINS for column in lists.values()):
            raise MessageError(f"{place}: {prefix}_n, _sum and _right are not three lists of {BINS} numbers")
        columns: Calibration = lists  # type: ignore[assignment]
        if not all(_possible(*row) for row in zip(columns["n"], columns["sum"], columns["right"], strict=True)):
            raise MessageError(f"{place}: {prefix}_n, _sum and _right are not those of any problems")
        calibrations[name] = columns
    return calibrations


def _possible(n: float, total: float, right: float) -> bool:
    """Whether n problems, of which some are right, can have probabilities of this sum."""
    return isinstance(n, int) and isinstance(right, int) and 0 <= right <= n and 0 <= total <= n + 1e-6


class SourceScores(BaseModel):
    """Pass@1 sums by source: over n problems the sum of their pass rates and of the squares."""

    model_config = ConfigDict(frozen=True)

    source: Annotated[str, AfterValidator(printable)] = Field(max_length=200)
    n: int = Field(ge=0)
    total: float = Field(ge=0)
    squares: float = Field(ge=0)


def scores_content(scores: list[SourceScores], numbers: Mapping[str, float | int]) -> RecordDict:
    """Content of the reply to an evaluation."""
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


def read_scores(message: Message, *, place: str) -> list[SourceScores]:
    """The scores in an evaluation's reply.

    Raises:
        MessageError: lists that are missing, too long, of different lengths, or not possible as sums of pass rates.
    """
    metrics = record_in(message.content, METRICS, MetricRecord) or MetricRecord()
    names = record_in(message.content, CONFIG, ConfigRecord) or ConfigRecord()
    lists = [names.get("sources", []), metrics.get("n"), metrics.get("total"), metrics.get("squares")]
    columns = [column for column in lists if isinstance(column, list)]
    if len(columns) != len(lists) or len({len(column) for column in columns}) != 1:
        raise MessageError(f"{place}: an evaluation reply without matching lists of sources and scores")
    if len(columns[0]) > MAX_SOURCES:
        raise MessageError(f"{place}: more than {MAX_SOURCES} sources")
    try:
        scores = [SourceScores(source=s, n=n, total=t, squares=q) for s, n, t, q in zip(*columns, strict=True)]
    except ValidationError as error:
        raise MessageError(f"{place}: an evaluation score that cannot be used ({error.errors()[0]['msg']})") from None
    if len({s.source for s in scores}) < len(scores):
        raise MessageError(f"{place}: scores with a source that is there twice")
    if any(not (s.squares <= s.total + 1e-6 and s.total <= s.n + 1e-6) for s in scores):
        raise MessageError(f"{place}: scores that are no sums of pass rates")
    return scores


Kind = TypeVar("Kind")


def record_in(content: RecordDict, name: str, kind: type[Kind]) -> Kind | None:
    """The record of this name, if it is of this kind.

    Flower's `array_records` and its like refer to themselves and to the content, which so outlives its message until
    Python looks for such circles: at a server that is several replies.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def nbytes(message: Message) -> int:
    """Bytes of a message's records as Flower counts them."""
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.values())

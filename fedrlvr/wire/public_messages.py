"""The additions of an exchange to messages: public problems, responses to them, and the stamp of their token ids.

    query.respond  down  public: problems and a notice     share: others' correct responses (from the second on)
                   up    responses, stamp, exchange: numbers of the last exchange
    train          down  share: of the round's last exchange
                   up    exchange: its numbers

Responses travel as token ids, since text that is tokenised again need not give the tokens that were sampled. So they
are of use only to who has the same tokenizer and model, which the stamp says. Readers here trust nothing: counts and
sizes are bounded before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedrlvr.coordination import Sent
from fedrlvr.errors import MessageError, printable
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.messages import record_in

RESPOND = "query.respond"
PUBLIC, SHARE, RESPONSES, STAMP, EXCHANGE = "public", "share", "responses", "stamp", "exchange"
MAX_PROBLEMS = 1 << 24
"""Largest number of characters in an exchange's public problems."""
MAX_NOTICE = 1000
MAX_AGE = 1 << 20
"""Largest age of a response, in optimizer steps within one round."""
LEAST_LOGP = -50.0
"""Smallest log-prob that a reader accepts; no token with a smaller one is ever sampled."""
_COLUMNS = {"problem": np.dtype("<i4"), "age": np.dtype("<i4"), "length": np.dtype("<i4")}
_LOGPS = np.dtype("<f4")


class Stamp(BaseModel):
    """Origin of token ids: model, tokenizer, temperature, round and exchange. Responses of different stamps cannot be
    mixed.

    model: architecture and shapes. tokenizer: hash of its vocabulary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(max_length=200)
    tokenizer: str = Field(max_length=200)
    temperature: float
    round: int
    exchange: int

    def difference(self, expected: Stamp) -> str | None:
        """The first field that is not as expected, with both values; None if all are."""
        for name in Stamp.model_fields:
            value, expected_value = getattr(self, name), getattr(expected, name)
            if value != expected_value:
                return printable(f"{name} {value}, not {expected_value}")
        return None


_PROBLEMS = TypeAdapter(list[Problem])


def problems_record(problems: Sequence[Problem], notice: str = "") -> ConfigRecord:
    """Public problems of an exchange, without responses to imitate, with a notice to this client.

    Raises:
        MessageError: they are too long for one message.
    """
    left_out = {
        place: {"response", *(name for name in ("messages", "columns") if not getattr(problem, name))}
        for place, problem in enumerate(problems)
    }
    text = _PROBLEMS.dump_json(list(problems), exclude=left_out).decode()
    if len(text) > MAX_PROBLEMS:
        raise MessageError(
            f"{len(problems)} public problems of {len(text)} characters are too long for a message; lower "
            "coordination.public_problems"
        )
    # Flower cannot count the bytes of an empty text.
    return ConfigRecord({"problems": text, **({"notice": notice[:MAX_NOTICE]} if notice else {})})


def read_problems(content: RecordDict, most: int) -> tuple[list[Problem], str]:
    """The public problems of a `query.respond` message, and its notice.

    Raises:
        MessageError: there are none, more than `most`, or a field does not fit.
    """
    record = record_in(content, PUBLIC, ConfigRecord) or ConfigRecord()
    text, notice = record.get("problems"), record.get("notice", "")
    if not isinstance(text, str) or len(text) > MAX_PROBLEMS or not isinstance(notice, str):
        raise MessageError(f"a {RESPOND} message without usable public problems")
    try:
        problems = _PROBLEMS.validate_json(text)
    except ValidationError as error:
        raise MessageError(f"public problems that cannot be used: {error.errors()[0]['msg']}") from None
    if not 1 <= len(problems) <= most:
        raise MessageError(f"{len(problems)} public problems, where at most {most} were announced")
    return problems, printable(notice[:MAX_NOTICE])


def responses_record(sent: Sequence[Sent], vocabulary: int) -> ArrayRecord:
    """Responses as flat arrays: their problems, ages and lengths, their tokens end to end, and log-probs if needed."""
    tokens = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    columns = {
        "problem": np.array([s.problem for s in sent], _COLUMNS["problem"]),
        "age": np.array([s.age for s in sent], _COLUMNS["age"]),
        "length": np.array([len(s.token_ids) for s in sent], _COLUMNS["length"]),
        "tokens": np.array([t for s in sent for t in s.token_ids], tokens),
    }
    if any(s.logps for s in sent):
        columns["logps"] = np.array([p for s in sent for p in s.logps], _LOGPS)
    return ArrayRecord({name: Array(column) for name, column in columns.items()})


def read_responses(record: Any, *, most: int, max_tokens: int, logps: bool) -> list[Sent]:
    """Read the responses in a record, at most `most`; the caller checks their content.

    max_tokens: the longest response that is asked for; longer ones are read up to twice that, so that they can be
        counted by who sent them. logps: whether log-probs are needed.

    Raises:
        MessageError: something that is no such record, or is too large.
    """
    if not isinstance(record, ArrayRecord):
        raise MessageError("no responses")
    wanted = [*_COLUMNS, "tokens", *(["logps"] if logps else [])]
    if not len(record):
        return []
    if not set(wanted) <= set(record) or len(record) > len(wanted) + 1:
        raise MessageError("responses without their arrays")
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for name in wanted:
        count = most if name in _COLUMNS else most * 2 * max_tokens
        array = record[name]
        # The header a sender writes is checked first, so that no oversized array is ever allocated.
        if len(array.shape) != 1 or array.shape[0] > count or len(array.data) > count * 8 + 1024:
            raise MessageError(f"more {name} than {most} responses of {max_tokens} tokens have")
        try:
            columns[name] = array.numpy()
        except Exception as error:  # numpy raises several kinds for bytes that are no array
            raise MessageError(f"{name} that cannot be decoded ({type(error).__name__})") from None
        column = columns[name]
        if not isinstance(column, np.ndarray):  # numpy opens a zip file of arrays too
            raise MessageError(f"{name} that cannot be decoded ({type(column).__name__})")
        if column.ndim != 1 or len(column) > count or column.dtype.kind not in ("f" if name == "logps" else "iu"):
            raise MessageError(f"{name} of another type or shape")
    lengths = columns["length"].astype(np.int64)
    total = int(lengths.sum())
    if len({len(columns[name]) for name in _COLUMNS}) != 1 or (lengths < 0).any() or (lengths > 2 * max_tokens).any():
        raise MessageError("arrays that do not belong together")
    if not ((columns["age"] >= 0) & (columns["age"] <= MAX_AGE)).all():
        raise MessageError(f"an age outside 0 to {MAX_AGE} steps")
    if any(len(columns[name]) != total for name in wanted if name not in _COLUMNS):
        raise MessageError("arrays that do not belong together")
    # Also against a ratio that overflows, and with it the receiver's gradient.
    if logps and not ((columns["logps"] <= 1e-3) & (columns["logps"] >= LEAST_LOGP)).all():
        raise MessageError("log-probs that no sampled token has")
    ends = np.cumsum(lengths)
    sent = []
    for problem, age, start, end in zip(columns["problem"], columns["age"], ends - lengths, ends, strict=True):
        values = tuple(columns["logps"][start:end].tolist()) if logps else ()
        sent.append(Sent(int(problem), tuple(columns["tokens"][start:end].tolist()), values, int(age)))
    return sent


def stamp_record(stamp: Stamp) -> ConfigRecord:
    """The stamp as a record of a message."""
    return ConfigRecord({"stamp": stamp.model_dump_json()})


def read_stamp(content: RecordDict) -> Stamp | None:
    """The stamp of a reply; None if it has none that can be read."""
    text = (record_in(content, STAMP, ConfigRecord) or ConfigRecord()).get("stamp")
    if not isinstance(text, str) or len(text) > 2000:
        return None
    try:
        return Stamp.model_validate_json(text)
    except ValidationError:
        return None

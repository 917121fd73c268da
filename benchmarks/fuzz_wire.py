"""Readers of messages between server and clients, and of the frames of an organisation's worker, for
`scripts/bench fuzz`: each with valid inputs that are altered.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from benchmarks.fuzz_inputs import json_in, json_of, records_of, scrambled
from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, parse_config
from fedrlvr.coordination import Sent
from fedrlvr.deployment.site.handler import _read as read_frames
from fedrlvr.deployment.site.socket import receive
from fedrlvr.deployment.superlink.grid import read_hello
from fedrlvr.deployment.terms import TERMS, Terms, read_terms, terms_record
from fedrlvr.errors import MessageError
from fedrlvr.server.exchange import Exchange, PublicSet
from fedrlvr.tasks import Problem
from fedrlvr.tasks.rewards import grader_for
from fedrlvr.wire import compression, messages, serialization
from fedrlvr.wire.messages import (
    ARRAYS,
    CONFIG,
    DELTA,
    METRICS,
    PROBES,
    EvaluateRequest,
    Request,
    RespondRequest,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    probes_record,
    record_in,
)
from fedrlvr.wire.model_delta import ModelDelta, read_delta
from fedrlvr.wire.public_messages import (
    EXCHANGE,
    PUBLIC,
    RESPONSES,
    SHARE,
    STAMP,
    problems_record,
    read_problems,
    read_responses,
    responses_record,
    stamp_record,
)


@dataclass(frozen=True)
class Reader:
    """A reader of foreign input.

    make: an altered input; the first argument is None for the input as it is. read: takes it in, as the package does.
    ours: exceptions that the reader's own documentation names besides `FedrlvrError`. cost: how many inputs of another
    reader one of this stands for, where it is slow.
    """

    make: Callable[[random.Random | None], Any]
    read: Callable[[Any], Any]
    ours: tuple[type[Exception], ...] = ()
    cost: int = 1


Make = Callable[[random.Random | None], Any]

VOCABULARY = 1 << 12


def adapter_of(seed: int) -> Adapter:
    """A small adapter of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q.A": (2, 6), "q.B": (4, 2), "v.A": (2, 6), "v.B": (6, 2)}
    return Adapter.from_tensors({n: torch.randn(*s, generator=generator) for n, s in shapes.items()}, 4.0)


LIKE = adapter_of(0)
PUBSWAP = parse_config(
    {
        "data": {"public_size": 2},
        "sampling": {"group_size": 4, "max_new_tokens": 64},
        "coordination": {"type": "pubswap", "public_problems": 2},
    }
)
SUMS = [Problem(f"What is {i} + {i}?", str(2 * i), f"p{i}", "sums", "math") for i in range(2)]


def message(body: RecordDict) -> Any:
    """What readers see of a message; Flower makes one within a run alone."""
    return SimpleNamespace(content=body, metadata=SimpleNamespace(message_type="train"))


def altered_records(make: Callable[[], RecordDict]) -> Make:
    """Contents whose records are altered."""
    return lambda rng: make() if rng is None else records_of(make(), rng)


def altered_json(make: Callable[[], RecordDict], name: str, key: str) -> Make:
    """Contents of which most often the JSON under a key is altered."""
    return lambda rng: make() if rng is None else json_in(make(), name, key, rng)


def altered_tree(tree: Any) -> Make:
    """The JSON of a tree, altered."""
    return lambda rng: json.dumps(tree) if rng is None else json_of(tree, rng)


def altered_bytes(data: bytes) -> Make:
    """Bytes, altered."""
    return lambda rng: data if rng is None else scrambled(data, rng)


def request_of(kind: type[Request], config: Config, **fields: Any) -> Request:
    """A request as the server makes it."""
    both = {"round": 1, "seed": 0, "sampling": config.sampling}
    if kind is not EvaluateRequest:
        both |= {"steps": 2, "train": config.train, "supervision": config.supervision}
    return kind.model_validate({**both, **fields})


def reply() -> RecordDict:
    """What a client sends back after training, with labels and probes."""
    numbers = {"num-examples": 3, "reward": 0.5, "loss": 0.1, "seconds_train": 1.0, "tokens_sampled": 10}
    columns = {"p1_n": [1] * 10, "p1_sum": [0.5] * 10, "p1_right": [1] * 10}
    records = {ARRAYS: adapter_to_arrays(adapter_of(1)), METRICS: MetricRecord({**numbers, **columns})}
    return RecordDict({**records, PROBES: probes_record(torch.ones(4))})


def scores() -> RecordDict:
    """What a client sends back after an evaluation."""
    lists = {"n": [1, 2], "total": [1.0, 1.5], "squares": [1.0, 1.25]}
    metrics = MetricRecord({"num-examples": 3, **lists})
    return RecordDict({METRICS: metrics, CONFIG: ConfigRecord({"sources": ["s", "t"]})})


def tokens(text: str) -> tuple[int, ...]:
    """A token for each character, and the end token."""
    return (*map(ord, text), 0)


def decoded(ids: list[int]) -> str:
    """The text of `tokens`."""
    return "".join(map(chr, ids[:-1]))


SENT = [
    Sent(p, tokens(f"{i}: so \\boxed{{{2 * p}}}"), (-0.5,) * len(tokens(f"{i}: so \\boxed{{{2 * p}}}")), 1)
    for p in range(2)
    for i in range(3)
]


def exchange() -> Exchange:
    """An exchange at the server, of two clients."""
    public = PublicSet(SUMS, decoded, grader_for(None), "m", "t", VOCABULARY, frozenset({0}))
    return Exchange(PUBSWAP, public, 1, 1, ["ann", "bob"])


def public_reply() -> RecordDict:
    """A client's reply in an exchange."""
    numbers = MetricRecord({"own_correct": 0.5, "swapped_in": 1})
    sent = responses_record(SENT, VOCABULARY)
    return RecordDict({RESPONSES: sent, STAMP: stamp_record(exchange().stamp), EXCHANGE: numbers})


def take_part(body: RecordDict) -> None:
    """One client's reply in an exchange with another's."""
    now = exchange()
    now.receive("ann", public_reply())
    try:
        messages.nbytes(SimpleNamespace(content=body, has_content=lambda: True))  # type: ignore[arg-type]
    except Exception as error:  # Flower's count fails in several ways, which the server takes for a malformed reply
        now.leave_out("bob", MessageError(type(error).__name__))
    else:
        now.receive("bob", body)
        now.took("bob", body)
    now.fill_pool()
    for client in ("ann", "bob"):
        now.share(client)
    json.dumps(now.to_json())


def wire() -> dict[str, Reader]:
    """Messages between server and clients."""
    coordination = PUBSWAP.coordination
    requests: list[Request] = [
        request_of(TrainRequest, Config()),
        request_of(RespondRequest, PUBSWAP, coordination=coordination, exchange=1),
        request_of(EvaluateRequest, Config(), evaluate=Config().evaluate),
    ]
    made: dict[str, Reader] = {}
    for request in requests:
        kind = type(request)
        made[f"request: {kind.__name__}"] = Reader(
            altered_json(lambda request=request: content(request), CONFIG, "request"),  # type: ignore[misc]
            lambda body, kind=kind: messages.read_request(message(body), kind),  # type: ignore[misc]
        )
    terms = Terms(
        run="r",
        client="ann",
        clients=3,
        rounds=5,
        task="main",
        model="m",
        model_id="i",
        weights_id="w",
        tokenizer_id="t",
        rank=4,
        largest=4,
        alpha=8.0,
    )
    made["terms"] = Reader(altered_json(lambda: RecordDict({TERMS: terms_record(terms)}), TERMS, "json"), read_terms)
    made["hello"] = Reader(
        altered_records(lambda: RecordDict({"hello": ConfigRecord({"name": "ann", "version": "1"})})), introduced
    )
    made["notes of a model's delta"] = Reader(
        altered_json(lambda: RecordDict({DELTA: ModelDelta(version=1).record()}), DELTA, "delta"),
        lambda body: read_delta(message(body)),
    )
    made["numbers and calibrations"] = Reader(
        altered_records(reply),
        lambda body: (
            messages.read_numbers(message(body), place="ann"),
            messages.read_calibrations(message(body), place="ann"),
        ),
    )
    made["scores"] = Reader(altered_records(scores), lambda body: messages.read_scores(message(body), place="ann"))
    made["adapter"] = Reader(
        altered_records(reply),
        lambda body: arrays_to_adapter(record_in(body, ARRAYS, ArrayRecord) or ArrayRecord(), LIKE, place="ann"),
    )
    for precision in ("float16", "int8"):
        packed = compression.pack(adapter_of(1), LIKE, None, precision)[0]  # type: ignore[arg-type]
        made[f"adapter in {precision}"] = Reader(
            altered_records(lambda packed=packed: RecordDict({ARRAYS: ArrayRecord(dict(packed))})),  # type: ignore[misc]
            lambda body, precision=precision: compression.unpack(  # type: ignore[misc]
                record_in(body, ARRAYS, ArrayRecord) or ArrayRecord(), LIKE, precision=precision, place="ann"
            ),
        )
    for name, count in (("probes", None), ("probes of a known size", 4)):
        made[name] = Reader(
            altered_records(lambda: RecordDict({PROBES: probes_record(torch.ones(4))})),
            lambda body, count=count: messages.read_probes(  # type: ignore[misc]
                record_in(body, PROBES, ArrayRecord) or ArrayRecord(), count, place="ann"
            ),
        )
    made["public problems"] = Reader(
        altered_json(lambda: RecordDict({PUBLIC: problems_record(SUMS, "notice")}), PUBLIC, "problems"),
        lambda body: read_problems(body, 4),
    )
    made["share of the pool"] = Reader(
        altered_records(lambda: RecordDict({SHARE: responses_record(SENT, VOCABULARY)})),
        lambda body: read_responses(body.get(SHARE), most=8, max_tokens=64, logps=True),
    )
    made["public responses in an exchange"] = Reader(altered_records(public_reply), take_part, (), 2)
    return made


def introduced(body: RecordDict) -> None:
    """A node that says itself what it is called."""
    parse_config({"federation": {"clients": [read_hello(body), "bob"]}})


def frames() -> dict[str, Reader]:
    """What an organisation's client app and its worker send each other, and keep."""
    packed = serialization.pack(RecordDict({**reply(), CONFIG: ConfigRecord({"b": b"x", "l": [1.5], "t": "s"})}))
    size = int.from_bytes(packed[4:12], "big")
    tree = json.loads(packed[12 : 12 + size])
    header = {"type": "message", "message_id": "m", "run_id": 1, "group_id": "1", "message_type": "train"}

    def contents(rng: random.Random | None) -> bytes:
        if rng is None or rng.random() < 0.3:
            return packed if rng is None else scrambled(packed, rng)
        text = json_of(tree, rng).encode("utf-8", "surrogatepass")
        return b"FRW1" + len(text).to_bytes(8, "big") + text + packed[12 + size :]

    def two(rng: random.Random | None) -> tuple[bytes, bytes]:
        text = json.dumps(header) if rng is None else json_of(header, rng)
        return text.encode("utf-8", "surrogatepass"), contents(None if rng is None or rng.random() < 0.7 else rng)

    def worker(pair: tuple[bytes, bytes]) -> None:
        waiting = list(pair)
        connection = SimpleNamespace(recv_bytes=lambda most: _within(waiting.pop(0), most))
        read_frames(*receive(connection))  # type: ignore[arg-type]

    return {
        "bytes of a content": Reader(contents, serialization.unpack),
        "frames of the worker's socket": Reader(two, worker, (OSError, EOFError)),
    }


def _within(data: bytes, most: int) -> bytes:
    if len(data) > most:  # as multiprocessing's connection does
        raise OSError("bad message length")
    return data
